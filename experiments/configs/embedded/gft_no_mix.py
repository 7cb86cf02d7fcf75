"""GFT(no mix): no teachers, on the embedded task.

Paper item: the row GFT(no mix) of Table 1. Command:
  python experiments/train.py --config experiments/configs/embedded/gft_no_mix.py \
    --workdir runs/gft_no_mix
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.

Groups of 1 + 7; how the paper fills the places of the teachers is not said.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config('gft_no_mix', 'gft', embedded.EXPERT_AND_SAMPLES)
