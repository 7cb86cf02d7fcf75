"""Figure 3: learning dynamics of GFT and its ablations."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from figures.drawing import COLOURS, band, legend
from figures.results import Results, accuracy_table
from figures.verdicts import Claim, Item

ARMS = {
  'gft': 'GFT',
  'gft_no_gal': 'without GAL',
  'gft_no_dcr': 'without DCR',
}
NORM = 'train/grad_norm'


def item(results: Results) -> Item:
  def norms(arm):
    return results.curve(arm, NORM)[1]

  def early(arm):
    """Accuracy over the first half of the evaluations."""
    _, values = results.curve(arm, results.accuracy_name())
    return values[:, : values.shape[1] // 2].mean(axis=1)

  def falls(arm):
    """Mean fall of accuracy between evaluations; 0 if it only rises."""
    _, values = results.curve(arm, results.accuracy_name())
    return np.maximum(-np.diff(values, axis=1), 0).mean(axis=1)

  def mean(arm):
    return norms(arm).mean(axis=1)

  def spread(arm):
    return norms(arm).std(axis=1) / mean(arm)

  return Item(
    title='Figure 3: learning dynamics of the ablations',
    paper='On MATH-lighteval: without GAL slow and low, without DCR volatile.',
    table=accuracy_table(
      results,
      ARMS,
      splits=('test',),
      more={
        'accuracy early': early,
        'mean fall between evaluations': falls,
        'gradient norm': mean,
        'its standard deviation over its mean': spread,
      },
    ),
    claims=[
      Claim('without GAL lower early', early('gft') - early('gft_no_gal')),
      Claim(
        'without DCR accuracy falls more between evaluations',
        falls('gft_no_dcr') - falls('gft'),
      ),
      Claim(
        'without DCR the gradient norm is larger',
        mean('gft_no_dcr') - mean('gft'),
        paper=False,
      ),
      Claim(
        'without DCR the gradient norm varies more, relative to its mean',
        spread('gft_no_dcr') - spread('gft'),
      ),
    ],
    figure=_draw(results),
    note=(
      'Early is the first half of the evaluations. Norms are drawn as means over'
      ' seeds; their intervals are in the table. Adam takes out the scale of'
      ' the gradient, so what could make training volatile is its spread.'
    ),
  )


def _draw(results: Results) -> Figure:
  figure = Figure(figsize=(6.6, 2.5))
  left, right = figure.subplots(1, 2)
  name = results.accuracy_name()
  base = results.accuracy('base')[:, None]
  for (arm, label), line in zip(ARMS.items(), ('-', ':', '--')):
    style = {'color': COLOURS[arm], 'label': label, 'ls': line}
    steps, values = results.curve(arm, name)
    steps = np.concatenate([[0], steps])
    band(left, steps, np.concatenate([base, values], axis=1), **style)
    steps, values = results.curve(arm, NORM)
    right.plot(steps, values.mean(axis=0), **style)
  left.set_ylabel('accuracy, in distribution')
  left.set_ylim(0, 1)
  right.set_ylabel('gradient norm')
  right.set_yscale('log')
  right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  right.yaxis.set_major_formatter(FormatStrFormatter('%g'))
  right.minorticks_off()
  for ax in (left, right):
    ax.set_xlabel('step')
  legend(figure, left)
  return figure
