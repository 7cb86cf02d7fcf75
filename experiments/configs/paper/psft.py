"""PSFT, as the paper compares it.

Paper item: the row PSFT of Table 1. Command:
  python experiments/train.py --config experiments/configs/paper/psft.py \
    --workdir runs/psft
Hardware: 8 TPU chips, because each of 8 updates sees 8 answers; see
experiments/pods/README.md. Never run here: no weights, data or accelerator at
hand. Values and sources: gft_jax/recipes/paper.py.
"""

from gft_jax import recipes
from gft_jax.config import Config


def get_config() -> Config:
  return recipes.find('paper/psft').config
