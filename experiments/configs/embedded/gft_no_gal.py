"""GFT without group advantages: rectified imitation, on the embedded task.

Paper item: the row without GAL of Table 2; Figure 3. Command:
  python experiments/train.py --config experiments/configs/embedded/gft_no_gal.py \
    --workdir runs/gft_no_gal
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config('gft_no_gal', 'gft_no_gal', embedded.DEMONSTRATIONS)
