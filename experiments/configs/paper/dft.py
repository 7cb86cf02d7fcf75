"""DFT, as the paper compares it.

Paper item: the row DFT of Table 1. Command:
  python experiments/train.py --config experiments/configs/paper/dft.py \
    --workdir runs/dft
Hardware: 16 TPU chips; see experiments/pods/README.md. Never run here: no
weights, data or accelerator at hand. Values and sources:
gft_jax/recipes/paper.py.
"""

from gft_jax import recipes
from gft_jax.config import Config


def get_config() -> Config:
  return recipes.find('paper/dft').config
