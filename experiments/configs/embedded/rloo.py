"""RLOO, on the embedded task.

Paper item: none; a relative of GRPO. Command:
  python experiments/train.py --config experiments/configs/embedded/rloo.py \
    --workdir runs/rloo
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config('rloo', 'rloo', embedded.OWN_SAMPLES)
