"""SFT, GFT and GRPO, alone and one after another.

Paper item: Figures 1b and 4, phases of 90 steps. Command:
  python experiments/train.py --config experiments/configs/paper/pipelines.py \
    --workdir runs/pipelines
Hardware: 16 TPU chips; see experiments/pods/README.md. Never run here: no weights,
data or accelerator at hand. Values and sources: experiments/paper.py.

A phase of SFT is 90 batches of 256, 39 of them warm-up. The paper's bar of SFT alone
is that of Table 1, 100,000 answers: sft.py. Whether its chains begin with all of
them or with a phase is not published.
"""

import paper

from gft_jax.config import Config

STEPS = 90


def get_config() -> Config:
  def phase(method, name, start=''):
    return paper.stage(method, name=name, start=start, steps=STEPS)

  return paper.config(
    phase('sft', 'sft'),
    phase('gft', 'gft'),
    phase('grpo', 'grpo'),
    phase('grpo', 'sft_grpo', 'sft'),
    phase('gft', 'sft_gft', 'sft'),
    phase('grpo', 'gft_grpo', 'gft'),
    phase('grpo', 'sft_gft_grpo', 'sft_gft'),
  )
