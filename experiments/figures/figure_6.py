"""Figure 6: the threshold τ of the dynamic coefficient."""

import numpy as np
from matplotlib.figure import Figure

from figures.drawing import points
from figures.results import Results, accuracy_table
from figures.verdicts import Claim, Item
from gft_jax.report import figures

# Arm -> τ; without DCR no token is rectified, as at τ = 0.
ARMS = {
  'gft_no_dcr': 0.0,
  'tau_0.1': 0.1,
  'tau_0.3': 0.3,
  'tau_0.5': 0.5,
  'gft': 0.7,
  'tau_0.9': 0.9,
}
# The same where rectification matters: imitation of the hesitant expert.
HESITANT = {
  'hesitant_sft': 0.0,
  'hesitant_tau_0.1': 0.1,
  'hesitant_tau_0.3': 0.3,
  'hesitant_tau_0.5': 0.5,
  'hesitant_gft_no_gal': 0.7,
  'hesitant_tau_0.9': 0.9,
}
FRACTION = 'train/rectified_fraction'


def item(results: Results) -> Item:
  def fraction(arm):
    if arm in ('gft_no_dcr', 'hesitant_sft'):
      return np.zeros(len(results.seeds))
    return results.curve(arm, FRACTION)[1].mean(axis=1)

  swept = [arm for arm in ARMS if arm != 'gft_no_dcr']
  fractions = np.array([fraction(arm) for arm in swept])
  return Item(
    title='Figure 6: the threshold τ',
    paper='Accuracy is an inverted U with its best about 0.7; the rectified'
    ' fraction rises with τ (no numbers printed).',
    table=accuracy_table(
      results,
      {arm: f'τ = {tau}' for arm, tau in ARMS.items()}
      | {arm: f'hesitant: τ = {tau}' for arm, tau in HESITANT.items()},
      more={'rectified fraction': fraction},
    ),
    claims=[
      *(
        Claim(
          f'τ = 0.7 above τ = {ARMS[arm]}, in distribution',
          results.accuracy('gft') - results.accuracy(arm),
        )
        for arm in swept
        if arm != 'gft'
      ),
      Claim(
        'the rectified fraction rises with τ, at every step of the sweep',
        np.diff(fractions, axis=0).min(axis=0),
      ),
      *(
        Claim(
          'imitation of the hesitant expert: τ = 0.7 above'
          f' τ = {HESITANT[arm]}, in distribution',
          results.accuracy('hesitant_gft_no_gal') - results.accuracy(arm),
          paper=False,
        )
        for arm in HESITANT
        if arm != 'hesitant_gft_no_gal'
      ),
    ],
    figure=_draw(results, fraction),
    note=(
      'τ = 0 is GFT without DCR, where no token is rectified; not in the paper.'
      ' Hesitant: imitation alone, of the expert of the last item, where'
      ' rectification matters most.'
    ),
  )


def _draw(results: Results, fraction) -> Figure:
  figure = Figure(figsize=(3.6, 2.5))
  ax = figure.subplots()
  taus = list(ARMS.values())
  points(
    ax,
    taus,
    [results.accuracy(arm) for arm in ARMS],
    fmt='-o',
    color=figures.GREEN,
  )
  points(
    ax,
    taus,
    [results.accuracy(arm) for arm in HESITANT],
    fmt='-^',
    color=figures.ORANGE,
  )
  ax.axhline(results.accuracy('base').mean(), color='#333333', ls=':', lw=1)
  ax.annotate(
    'base',
    (1, results.accuracy('base').mean()),
    (-2, 4),
    xycoords=('axes fraction', 'data'),
    textcoords='offset points',
    ha='right',
  )
  ax.set_ylim(0, 1.12)
  ax.set_xlabel('τ')
  ax.set_xticks(taus)
  ax.set_ylabel('accuracy: GFT ●, hesitant ▲')
  other = ax.twinx()
  points(
    other,
    taus,
    [fraction(arm) for arm in ARMS],
    fmt='--s',
    mfc='white',
    color=figures.GREY,
  )
  other.set_ylabel('rectified fraction of tokens (□)')
  other.spines.right.set_visible(True)
  other.set_ylim(0, 1.12)
  other.grid(visible=False)
  return figure
