"""ASFT: DFT with an exact KL to the base policy, on the embedded task.

Paper item: the row ASFT of Table 1. Command:
  python experiments/train.py --config experiments/configs/embedded/asft.py \
    --workdir runs/asft
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.

The weight of the KL is the published 0.1.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config('asft', 'asft', embedded.DEMONSTRATIONS)
