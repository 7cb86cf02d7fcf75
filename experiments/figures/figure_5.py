"""Figure 5: KL from the base policy over training."""

import numpy as np
from matplotlib.figure import Figure

from figures.drawing import COLOURS, points
from figures.results import KL, Results
from figures.verdicts import Claim, Item
from gft_jax.report import tables
from gft_jax.report.comparison import interval

MARKERS = {'sft': 's', 'grpo': 'D', 'gft': 'o'}
ARMS = {'sft': 'SFT', 'grpo': 'GRPO', 'gft': 'GFT'}


def item(results: Results) -> Item:
  curves = {arm: results.curve(arm, KL) for arm in ARMS}
  final = {arm: values[:, -1] for arm, (_, values) in curves.items()}
  steps, _ = curves['sft']
  body = [
    [ARMS[arm], *(str(interval(column)) for column in values.T)]
    for arm, (_, values) in curves.items()
  ]
  return Item(
    title='Figure 5: KL from the base policy over training',
    paper='SFT highest; GFT low and close to GRPO (no numbers printed).',
    table=tables.Table(['', *(f'step {s:.0f}' for s in steps)], body, []),
    claims=[
      Claim('SFT drifts farther than GFT', final['sft'] - final['gft']),
      Claim(
        'GFT is closer to GRPO than to SFT',
        np.abs(final['sft'] - final['gft'])
        - np.abs(final['gft'] - final['grpo']),
      ),
    ],
    figure=_draw(curves),
    note=(
      'Exact KL(policy || base) per token, over the vocabulary, on own samples'
      ' at temperature 1. The official code samples the other direction, from'
      ' the base policy.'
    ),
  )


def _draw(curves) -> Figure:
  figure = Figure(figsize=(3.6, 2.5))
  ax = figure.subplots()
  for arm, (steps, values) in curves.items():
    points(
      ax,
      [0, *steps],
      [np.zeros(len(values)), *values.T],
      fmt=f'-{MARKERS[arm]}',
      color=COLOURS[arm],
      label=ARMS[arm],
    )
  ax.set_xlabel('step')
  ax.set_ylabel('KL to base (nats per token)')
  ax.set_ylim(bottom=0)
  ax.legend()
  return figure
