"""SFT, GFT and GRPO, alone and one after another.

Paper item: Figures 1b and 4, phases of 90 steps. Command:
  python experiments/train.py --config experiments/configs/paper/pipelines.py \
    --workdir runs/pipelines
Hardware: 16 TPU chips; see experiments/pods/README.md. Never run here: no
weights, data or accelerator at hand. Values and sources:
gft_jax/recipes/paper.py.
"""

from gft_jax import recipes
from gft_jax.config import Config


def get_config() -> Config:
  return recipes.find('paper/pipelines').config
