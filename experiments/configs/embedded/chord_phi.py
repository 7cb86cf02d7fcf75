"""CHORD-φ: constant µ, certain and absurd tokens left out, on the embedded task.

Paper item: the row CHORD of Table 1. Command:
  python experiments/train.py --config experiments/configs/embedded/chord_phi.py \
    --workdir runs/chord_phi
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config('chord_phi', 'chord_phi', embedded.EXPERT_AND_SAMPLES)
