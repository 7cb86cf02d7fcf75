"""CHORD-µ: from imitation to reward, on the embedded task.

Paper item: the row CHORD of Table 1. Command:
  python experiments/train.py --config experiments/configs/embedded/chord_mu.py \
    --workdir runs/chord_mu
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.

µ falls to its valley over the whole stage, not over the published 200 steps.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config(
    'chord_mu',
    'chord_mu',
    (*embedded.EXPERT_AND_SAMPLES, f'loss.mu_decay_steps={embedded.STEPS}'),
  )
