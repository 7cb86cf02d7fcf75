"""GFT, the paper, on the embedded task.

Paper item: the row GFT of Tables 1 and 2. Command:
  python experiments/train.py --config experiments/configs/embedded/gft.py \
    --workdir runs/gft
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.
Also found as `--config embedded/gft`.
"""

from gft_jax.config import Config
from gft_jax.recipes import embedded


def get_config() -> Config:
  return embedded.config('gft', 'gft')
