"""DAPO: clip-higher, dynamic sampling and an overlong penalty, on the embedded task.

Paper item: none; a relative of GRPO. Command:
  python experiments/train.py --config experiments/configs/embedded/dapo.py \
    --workdir runs/dapo
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.

Three further rollouts a step at most, where the published recipe has nine.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config(
    'dapo', 'dapo', (*embedded.OWN_SAMPLES, 'group.refills=3')
  )
