"""Beyond the paper: where the dynamic coefficient matters."""

import numpy as np

from figures.results import KL, Claim, Item, Results, accuracy_table

# Regime -> the arm with and the arm without DCR.
REGIMES = {
  'as in the paper (4:4)': ('gft', 'gft_no_dcr'),
  '6:2, demonstrations prevail': ('group_6_2', 'group_6_2_no_dcr'),
  '8:0, demonstrations alone': ('group_8_0', 'group_8_0_no_dcr'),
  'ten times the learning rate, no clipping': ('hot', 'hot_no_dcr'),
  'four updates a rollout': ('updates', 'updates_no_dcr'),
}


def item(results: Results) -> Item:
  arms, claims = {}, []
  for regime, (rectified, plain) in REGIMES.items():
    arms |= {rectified: f'{regime}: GFT', plain: f'{regime}: without DCR'}
    claims += [
      Claim(
        f'DCR raises accuracy, {regime}',
        results.accuracy(rectified) - results.accuracy(plain),
      ),
      Claim(
        f'DCR lowers the drift, {regime}',
        results.final(plain, KL) - results.final(rectified, KL),
      ),
    ]

  def norm(arm):
    return results.curve(arm, 'train/grad_norm')[1]

  return Item(
    title='Beyond the paper: where the dynamic coefficient matters',
    paper='Without DCR: volatile, and 4.5 points lower on Math.',
    table=accuracy_table(
      results,
      arms,
      more={
        'KL to base': lambda arm: results.final(arm, KL),
        'gradient norm, mean': lambda arm: norm(arm).mean(axis=1),
        'largest': lambda arm: np.max(norm(arm), axis=1),
      },
    ),
    claims=claims,
  )
