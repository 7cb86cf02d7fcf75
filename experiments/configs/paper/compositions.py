"""GFT with eight demonstrations to none in a group of eight.

Paper item: Table 5; a demonstration is the expert's or a teacher's. Command:
  python experiments/train.py --config experiments/configs/paper/compositions.py \
    --workdir runs/compositions
Hardware: 16 TPU chips; see experiments/pods/README.md. Never run here: no weights,
data or accelerator at hand. Values and sources: experiments/paper.py.
"""

import paper

from gft_jax.config import Config

SIZE = 8


def get_config() -> Config:
  def groups(demonstrations):
    return paper.stage(
      'gft',
      f'group.experts={min(demonstrations, 1)}',
      f'group.teachers={max(demonstrations - 1, 0)}',
      f'group.samples={SIZE - demonstrations}',
      name=f'group_{demonstrations}_{SIZE - demonstrations}',
    )

  return paper.config(*map(groups, (8, 6, 4, 2, 0)))
