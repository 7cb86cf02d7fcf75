"""Beyond the paper: where the dynamic coefficient matters."""

import numpy as np
from matplotlib.figure import Figure

from figures.drawing import COLOURS, legend, points
from figures.results import KL, Results, accuracy_table
from figures.verdicts import Claim, Item

# Regime -> the arm with and the arm without DCR.
REGIMES = {
  'as in the paper, 4:4': ('gft', 'gft_no_dcr'),
  '6:2, demonstrations prevail': ('group_6_2', 'group_6_2_no_dcr'),
  '8:0, demonstrations alone': ('group_8_0', 'group_8_0_no_dcr'),
  '10 x learning rate': ('fast', 'fast_no_dcr'),
  'no clipping': ('unclipped', 'unclipped_no_dcr'),
  'four updates a rollout': ('updates', 'updates_no_dcr'),
  'imitation of the terse expert': ('gft_no_gal', 'sft'),
  'hesitant expert, 4:4': ('hesitant_gft', 'hesitant_gft_no_dcr'),
  'imitation of the hesitant expert': ('hesitant_gft_no_gal', 'hesitant_sft'),
  'the same, its foreign sign alone': ('repeating_gft_no_gal', 'repeating_sft'),
  'the same, its errors alone': ('guessing_gft_no_gal', 'guessing_sft'),
}


def item(results: Results) -> Item:
  arms, claims = {}, []
  for regime, (rectified, plain) in REGIMES.items():
    arms |= {rectified: f'{regime}: with', plain: f'{regime}: without'}
    claims += [
      Claim(
        f'DCR raises accuracy, {regime}',
        results.accuracy(rectified) - results.accuracy(plain),
        paper=False,
      ),
      Claim(
        f'DCR lowers the drift, {regime}',
        results.final(plain, KL) - results.final(rectified, KL),
        paper=False,
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
        'gradient norm': lambda arm: norm(arm).mean(axis=1),
        'its largest': lambda arm: np.max(norm(arm), axis=1),
        'answers that hesitate': lambda arm: results.share(arm, 'hesitates'),
      },
    ),
    claims=claims,
    figure=_draw(results),
    note=(
      'Five of the first seven regimes were chosen in advance. Ten times the'
      ' learning rate and no clipping were one regime then (0.63 with, 0.67'
      ' without, on these seeds), taken apart after that had been seen. The'
      ' hesitant expert was chosen after the others had been seen on seeds 0 to'
      ' 2, its two controls before the seeds 3 to 5 were run. Half of its numbers are preceded by a wrong one and by `:`, which'
      ' the base policy never writes (`25:15,12,16:17#17`); no reward tells'
      ' against that. The controls have one of the two each: the right number'
      ' twice (`15:15,12,17:17#17`), or a wrong one before a comma'
      ' (`25,15,12,16,17#17`). What rectification spares is the foreign sign:'
      ' a habit behind it is taken up by few answers with DCR and by two of'
      ' three without; errors behind a sign that the policy knows are taken up'
      ' in either case. By log p every token pulls with weight 1; rectified, one'
      ' of probability p under τ pulls with p, so what the policy would hardly'
      ' ever say it hardly learns. No norm'
      ' explodes: by the logits the gradient of log p is onehot − π, at most √2'
      ' a token, and clipping and Adam level out that it is larger without DCR.'
      ' What demonstrations alone (8:0) do: Table 5. A decoder four times as'
      ' large: see experiments/README.md.'
    ),
  )


def _draw(results: Results) -> Figure:
  figure = Figure(figsize=(6.6, 3.6))
  left, right = figure.subplots(1, 2, sharey=True)
  rows = np.arange(len(REGIMES))
  for place, (label, arm, marker, shift) in enumerate(
    (
      ('with DCR', 'gft', 'o', -0.14),
      ('without', 'gft_no_dcr', 's', 0.14),
    )
  ):
    arms = [pair[place] for pair in REGIMES.values()]
    for ax, values in (
      (left, [results.accuracy(arm) for arm in arms]),
      (right, [results.final(arm, KL) for arm in arms]),
    ):
      points(
        ax,
        rows + shift,
        values,
        color=COLOURS[arm],
        fmt=marker,
        label=label,
        horizontal=True,
      )
  left.set_yticks(rows, REGIMES)
  left.invert_yaxis()
  left.set_xlim(0, 1.12)
  left.set_xlabel('accuracy, in distribution')
  right.set_xlim(left=0)
  right.set_xlabel('KL to base (nats per token)')
  legend(figure, left)
  return figure
