"""GFT with every threshold of the dynamic coefficient.

Paper item: Figure 6, the sweep of τ (its own grid is not published). Command:
  python experiments/train.py --config experiments/configs/paper/thresholds.py \
    --workdir runs/thresholds
Hardware: 16 TPU chips; see experiments/pods/README.md. Never run here: no
weights, data or accelerator at hand. Values and sources:
gft_jax/recipes/paper.py.
"""

from gft_jax import recipes
from gft_jax.config import Config


def get_config() -> Config:
  return recipes.find('paper/thresholds').config
