"""LUFFY: one expert answer in each group of own ones, on the embedded task.

Paper item: the row LUFFY of Table 1. Command:
  python experiments/train.py --config experiments/configs/embedded/luffy.py \
    --workdir runs/luffy
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config('luffy', 'luffy', embedded.EXPERT_AND_SAMPLES)
