"""GRPO, on the embedded task.

Paper item: the row GRPO of Table 1. Command:
  python experiments/train.py --config experiments/configs/embedded/grpo.py \
    --workdir runs/grpo
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.
Also found as `--config embedded/grpo`.
"""

from gft_jax.config import Config
from gft_jax.recipes import embedded


def get_config() -> Config:
  return embedded.config('grpo', 'grpo', embedded.OWN_SAMPLES)
