"""Dr. GRPO, on the embedded task.

Paper item: none; a relative of GRPO. Command:
  python experiments/train.py --config experiments/configs/embedded/dr_grpo.py \
    --workdir runs/dr_grpo
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config('dr_grpo', 'dr_grpo', embedded.OWN_SAMPLES)
