"""GRPO + SFT, LUFFY's second baseline, on the embedded task.

Paper item: none. Command:
  python experiments/train.py --config experiments/configs/embedded/grpo_sft.py \
    --workdir runs/grpo_sft
Hardware: 2 CPU cores; see experiments/README.md for times and numbers.
"""

import embedded

from gft_jax.config import Config


def get_config() -> Config:
  return embedded.config('grpo_sft', 'grpo_sft', embedded.EXPERT_AND_SAMPLES)
