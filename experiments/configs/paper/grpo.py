"""GRPO, as the paper compares it.

Paper item: the rows GRPO of Tables 1, 3 and 4, and Figures 1 and 5. Command:
  python experiments/train.py --config experiments/configs/paper/grpo.py \
    --workdir runs/grpo
Hardware: 16 TPU chips; see experiments/pods/README.md. Never run here: no
weights, data or accelerator at hand. Values and sources:
gft_jax/recipes/paper.py.
"""

from gft_jax import recipes
from gft_jax.config import Config


def get_config() -> Config:
  return recipes.find('paper/grpo').config
