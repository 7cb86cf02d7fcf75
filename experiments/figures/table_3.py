"""Table 3: what post-training forgets."""

from figures.results import SPLITS, Results, accuracy_table
from figures.verdicts import Claim, Item

ARMS = {'base': 'base', 'sft': 'SFT', 'grpo': 'GRPO', 'gft': 'GFT'}
FORGOTTEN = ('ood_length', 'ood_operator')
PAPER = dict(
  zip(
    ARMS,
    (
      '96.06 86.36 41.03',
      '91.97 78.73 35.05',
      '94.60 88.11 39.48',
      '95.79 84.65 43.89',
    ),
  )
)


def item(results: Results) -> Item:
  claims = []
  for split in FORGOTTEN:
    base, sft, grpo, gft = (results.accuracy(arm, split) for arm in ARMS)
    claims += [
      Claim(f'SFT forgets {SPLITS[split]}', base - sft),
      Claim(f'GFT forgets {SPLITS[split]} less than SFT', gft - sft),
      Claim(f'GFT is above base, {SPLITS[split]}', gft - base, paper=False),
      Claim(f'GFT is above GRPO, {SPLITS[split]}', gft - grpo, paper=False),
    ]
  return Item(
    title='Table 3: forgetting',
    paper='LLaMA-3.2-3B-Instruct on MAWPS, SVAMP, MMLU-STEM: the last column.',
    table=accuracy_table(
      results,
      ARMS,
      splits=FORGOTTEN,
      paper={'MAWPS SVAMP MMLU-STEM': PAPER},
    ),
    claims=claims,
    note=(
      'The base policy learned both splits in pre-training; post-training asks'
      ' for neither.'
    ),
  )
