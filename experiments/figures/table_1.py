"""Table 1: methods on held-out splits."""

import numpy as np

from figures.results import ENTROPY, KL, SPLITS, Results, accuracy_table
from figures.verdicts import Claim, Item

ARMS = {
  'base': 'base',
  'sft': 'SFT',
  'sft_mix': 'SFT(mix)',
  'grpo': 'GRPO',
  'asft': 'ASFT',
  'psft': 'PSFT',
  'dft': 'DFT',
  'luffy': 'LUFFY',
  'chord_phi': 'CHORD-φ',
  'gft_no_mix': 'GFT(no mix)',
  'gft': 'GFT',
}
# Qwen2.5-Math-1.5B.
AMC23 = dict(
  zip(
    ARMS,
    '30.16 31.25 32.70 44.84 43.12 31.56 36.40 35.15 47.50 42.18 46.09'.split(),
  )
)
MATH = dict(
  zip(
    ARMS,
    '46.54 60.66 60.41 65.97 60.35 59.51 64.35 59.80 68.10 68.13 70.50'.split(),
  )
)


def item(results: Results) -> Item:
  def mean(arm):
    return np.mean([results.accuracy(arm, split) for split in SPLITS], axis=0)

  return Item(
    title='Table 1: methods',
    paper=(
      'Qwen2.5-Math-1.5B: the last two columns, of six benchmarks; GFT is best'
      ' on Math and second on AMC23. On its three other models not always: Math'
      ' of DeepSeekMath, GFT'
      ' 44.79, SFT 46.51.'
    ),
    table=accuracy_table(
      results,
      ARMS,
      more={
        'mean': mean,
        'KL to base': lambda arm: results.final(arm, KL),
        'entropy': lambda arm: results.final(arm, ENTROPY),
      },
      paper={'AMC23': AMC23, 'Math': MATH},
    ),
    claims=[
      Claim(f'GFT above {label}, mean of the splits', mean('gft') - mean(arm))
      for arm, label in ARMS.items()
      if arm != 'gft'
    ],
    note=(
      'Methods that imitate see ten times the prompts, as in the paper; all'
      ' have one learning rate, 1e-4, and 80 steps.'
    ),
  )
