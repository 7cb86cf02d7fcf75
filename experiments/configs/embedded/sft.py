"""SFT, on the embedded task.

Paper item: the row SFT of Table 1; Table 2 without GAL and DCR. Command:
  python experiments/train.py --config experiments/configs/embedded/sft.py \
    --workdir runs/sft
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.
Also found as `--config embedded/sft`.
"""

from gft_jax.config import Config
from gft_jax.recipes import embedded


def get_config() -> Config:
  return embedded.config('sft', 'sft', embedded.DEMONSTRATIONS)
