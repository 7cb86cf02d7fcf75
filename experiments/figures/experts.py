"""Beyond the paper: the style of the expert decides its first claims."""

from figures.results import KL, SPLITS, Results, accuracy_table
from figures.verdicts import Claim, Item

ARMS = {
  'base': 'base',
  'grpo': 'GRPO (no expert)',
  'sft': 'SFT, terse expert',
  'gft': 'GFT, terse expert',
  'sft_grpo': 'SFT → GRPO, terse expert',
  'verbose_sft': 'SFT, verbose expert',
  'verbose_gft': 'GFT, verbose expert',
  'verbose_sft_grpo': 'SFT → GRPO, verbose expert',
}


def item(results: Results) -> Item:
  def above(better, worse, split='test'):
    return results.accuracy(better, split) - results.accuracy(worse, split)

  return Item(
    title='Beyond the paper: two styles of expert',
    paper='One expert, the solutions of NuminaMath-CoT.',
    table=accuracy_table(
      results, ARMS, more={'KL to base': lambda a: results.final(a, KL)}
    ),
    claims=[
      Claim(text, margins, paper=False)
      for text, margins in (
        ('GFT above SFT, terse expert', above('gft', 'sft')),
        ('GFT above SFT, verbose expert', above('verbose_gft', 'verbose_sft')),
        ('SFT → GRPO below GRPO, terse expert', above('grpo', 'sft_grpo')),
        (
          'SFT → GRPO below GRPO, verbose expert',
          above('grpo', 'verbose_sft_grpo'),
        ),
        (
          'SFT drifts farther than GFT, verbose expert',
          results.final('verbose_sft', KL) - results.final('verbose_gft', KL),
        ),
        *(
          (
            f'SFT lowers accuracy, verbose expert, {SPLITS[split]}',
            above('base', 'verbose_sft', split),
          )
          for split in SPLITS
        ),
      )
    ],
    note=(
      'Terse: `p20n3#17`, which skips the steps that this policy needs.'
      ' Verbose: `7+8=15;15+5=20;20-3=17#17`, which writes them.'
    ),
  )
