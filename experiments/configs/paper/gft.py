"""GFT, as the paper compares it.

Paper item: the rows GFT of Tables 1 to 4, and Figures 3, 5, 6. Command:
  python experiments/train.py --config experiments/configs/paper/gft.py \
    --workdir runs/gft
Hardware: 16 TPU chips; see experiments/pods/README.md. Never run here: no
weights, data or accelerator at hand. Values and sources:
gft_jax/recipes/paper.py.

The sweep of Figure 6 adds `--set loss.tau=0.5`; that of Table 5 adds, for 2:6,
`--set group.teachers=1 group.samples=6`.
"""

from gft_jax import recipes
from gft_jax.config import Config


def get_config() -> Config:
  return recipes.find('paper/gft').config
