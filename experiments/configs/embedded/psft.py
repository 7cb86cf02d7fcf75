"""PSFT: eight clipped updates a step, on the embedded task.

Paper item: the row PSFT of Table 1. Command:
  python experiments/train.py --config experiments/configs/embedded/psft.py \
    --workdir runs/psft
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.

Eight updates a step as published, so each sees 20 demonstrations.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config(
    'psft', 'psft', (*embedded.DEMONSTRATIONS, 'optimizer.mini_batches=8')
  )
