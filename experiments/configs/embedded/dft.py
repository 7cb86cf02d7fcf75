"""DFT, on the embedded task.

Paper item: the row DFT of Table 1. Command:
  python experiments/train.py --config experiments/configs/embedded/dft.py \
    --workdir runs/dft
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config('dft', 'dft', embedded.DEMONSTRATIONS)
