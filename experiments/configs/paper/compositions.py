"""GFT with eight demonstrations to none in a group of eight.

Paper item: Table 5; a demonstration is the expert's or a teacher's. Command:
  python experiments/train.py --config experiments/configs/paper/compositions.py \
    --workdir runs/compositions
Hardware: 16 TPU chips; see experiments/pods/README.md. Never run here: no
weights, data or accelerator at hand. Values and sources:
gft_jax/recipes/paper.py.
"""

from gft_jax import recipes
from gft_jax.config import Config


def get_config() -> Config:
  return recipes.find('paper/compositions').config
