"""GFT without dynamic coefficients (DCR), as the paper compares it.

Paper item: the row without DCR of Table 2, and Figure 3. Command:
  python experiments/train.py --config experiments/configs/paper/gft_no_dcr.py \
    --workdir runs/gft_no_dcr
Hardware: 16 TPU chips; see experiments/pods/README.md. Never run here: no
weights, data or accelerator at hand. Values and sources:
gft_jax/recipes/paper.py.
"""

from gft_jax import recipes
from gft_jax.config import Config


def get_config() -> Config:
  return recipes.find('paper/gft_no_dcr').config
