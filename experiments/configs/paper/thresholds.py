"""GFT with every threshold of the dynamic coefficient.

Paper item: Figure 6, the sweep of τ (its own grid is not published). Command:
  python experiments/train.py --config experiments/configs/paper/thresholds.py \
    --workdir runs/thresholds
Hardware: 16 TPU chips; see experiments/pods/README.md. Never run here: no weights,
data or accelerator at hand. Values and sources: experiments/paper.py.
"""

import paper

from gft_jax.config import Config

TAUS = (0.1, 0.3, 0.5, 0.7, 0.9)


def get_config() -> Config:
  return paper.config(
    *(paper.stage('gft', f'loss.tau={tau}', name=f'tau_{tau}') for tau in TAUS)
  )
