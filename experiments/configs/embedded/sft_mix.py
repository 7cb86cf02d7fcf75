"""SFT(mix): SFT on expert and teacher answers alike, on the embedded task.

Paper item: the row SFT(mix) of Table 1. Command:
  python experiments/train.py --config experiments/configs/embedded/sft_mix.py \
    --workdir runs/sft_mix
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.

Teachers are wrong in about one answer of eight, and are imitated all the same.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config('sft_mix', 'sft', embedded.MIXTURE)
