"""Table 2: the ablation of group advantages and dynamic coefficients."""

from figures.results import Results, accuracy_table
from figures.verdicts import Claim, Item

ARMS = {
  'base': 'base',
  'sft': 'without GAL and DCR (SFT)',
  'gft_no_gal': 'without GAL',
  'gft_no_dcr': 'without DCR',
  'gft': 'GFT',
}
MATH = dict(zip(ARMS, '46.54 60.66 63.91 65.97 70.50'.split()))
AMC23 = dict(zip(ARMS, '30.16 31.25 35.78 42.81 46.09'.split()))
OLYMPIAD = dict(zip(ARMS, '23.39 24.58 26.63 27.82 30.52'.split()))


def item(results: Results) -> Item:
  pairs = {
    'GFT above GFT without DCR': ('gft', 'gft_no_dcr'),
    'GFT above GFT without GAL': ('gft', 'gft_no_gal'),
    'without DCR above without GAL': ('gft_no_dcr', 'gft_no_gal'),
    'without GAL above SFT': ('gft_no_gal', 'sft'),
  }
  return Item(
    title='Table 2: ablation',
    paper='Each part adds: the last columns, Qwen2.5-Math-1.5B.',
    table=accuracy_table(
      results,
      ARMS,
      paper={'AMC23': AMC23, 'Math': MATH, 'OlympiadBench': OLYMPIAD},
    ),
    claims=[
      Claim(
        f'{text}, in distribution',
        results.accuracy(better) - results.accuracy(worse),
      )
      for text, (better, worse) in pairs.items()
    ],
  )
