"""Figure 3: learning dynamics of GFT and its ablations."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from figures.results import (
  COLOURS,
  Claim,
  Item,
  Results,
  accuracy_table,
  band,
  legend,
)

ARMS = {
  'gft': 'GFT',
  'gft_no_gal': 'without GAL',
  'gft_no_dcr': 'without DCR',
}
NORM = 'train/grad_norm'


def item(results: Results) -> Item:
  def norms(arm):
    return results.curve(arm, NORM)[1]

  def half(arm):
    """Accuracy over the first half of training."""
    _, values = results.curve(arm, results.accuracy_name())
    return values[:, : values.shape[1] // 2].mean(axis=1)

  def roughness(arm):
    """Mean fall of accuracy between evaluations; 0 if it only rises."""
    _, values = results.curve(arm, results.accuracy_name())
    return np.maximum(-np.diff(values, axis=1), 0).mean(axis=1)

  return Item(
    title='Figure 3: learning dynamics of the ablations',
    paper='On MATH-lighteval: without GAL slow and low, without DCR volatile.',
    table=accuracy_table(
      results,
      ARMS,
      splits=('test',),
      more={
        'accuracy, first half': half,
        'mean fall between evaluations': roughness,
        'gradient norm, mean': lambda arm: norms(arm).mean(axis=1),
        'its standard deviation': lambda arm: norms(arm).std(axis=1),
      },
    ),
    claims=[
      Claim('without GAL slower', half('gft') - half('gft_no_gal')),
      Claim(
        'without GAL lower',
        results.accuracy('gft') - results.accuracy('gft_no_gal'),
      ),
      Claim(
        'without DCR the gradient norm varies more',
        norms('gft_no_dcr').std(axis=1) - norms('gft').std(axis=1),
      ),
      Claim(
        'without DCR accuracy falls more between evaluations',
        roughness('gft_no_dcr') - roughness('gft'),
      ),
    ],
    figure=_draw(results),
  )


def _draw(results: Results) -> Figure:
  figure = Figure(figsize=(6.6, 2.5))
  left, right = figure.subplots(1, 2)
  name = results.accuracy_name()
  base = results.accuracy('base')[:, None]
  for arm, label in ARMS.items():
    steps, values = results.curve(arm, name)
    steps = np.concatenate([[0], steps])
    band(
      left,
      steps,
      np.concatenate([base, values], axis=1),
      COLOURS[arm],
      label,
    )
    band(right, *results.curve(arm, NORM), COLOURS[arm], label)
  left.set_ylabel('accuracy, in distribution')
  right.set_ylabel('gradient norm')
  right.set_yscale('log')
  right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  right.yaxis.set_major_formatter(FormatStrFormatter('%g'))
  right.minorticks_off()
  for ax in (left, right):
    ax.set_xlabel('step')
  legend(figure, left)
  return figure
