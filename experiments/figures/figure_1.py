"""Figure 1: what SFT and GRPO change, and GRPO after SFT."""

import numpy as np
from matplotlib.figure import Figure

from figures.drawing import COLOURS, legend, points
from figures.results import SPLITS, Results
from figures.verdicts import Claim, Item
from gft_jax.report import tables
from gft_jax.report.comparison import interval

ARMS = {'sft': 'SFT', 'grpo': 'GRPO', 'sft_grpo': 'SFT → GRPO'}


def item(results: Results) -> Item:
  def change(arm, split):
    return results.accuracy(arm, split) - results.accuracy('base', split)

  body = []
  for split, label in SPLITS.items():
    changes = [str(interval(change(arm, split))) for arm in ('sft', 'grpo')]
    levels = [str(interval(results.accuracy(arm, split))) for arm in ARMS]
    body.append([label, *changes, *levels])
  head = ['', '(a) SFT − base', '(a) GRPO − base']
  claims = [
    Claim(f'SFT lowers accuracy, {label}', -change('sft', split))
    for split, label in SPLITS.items()
  ]
  claims += [
    Claim(f'GRPO raises accuracy, {label}', change('grpo', split))
    for split, label in SPLITS.items()
  ]
  claims += [
    Claim(
      f'SFT → GRPO ends below GRPO, {label}',
      results.accuracy('grpo', split) - results.accuracy('sft_grpo', split),
    )
    for split, label in SPLITS.items()
  ]
  return Item(
    title='Figure 1: what SFT and GRPO change, and GRPO after SFT',
    paper=(
      '(a) LLaMA-3.2-3B, change from base, SFT and GRPO: Gaokao2023En -1.73,'
      ' +2.55; Math -0.97, +1.55; Minerva -2.69, +0.52. (b) Qwen2.5-Math-1.5B,'
      ' SFT, GRPO, SFT → GRPO: Math 60.66, 65.97, 63.3; AMC23 31.25, 44.84,'
      ' 35.78; OlympiadBench 24.58, 30.52, 26.95. On Qwen SFT raises accuracy'
      ' (Table 1: Math 46.54 to 60.66).'
    ),
    table=tables.Table(
      [*head, *(f'(b) {label}' for label in ARMS.values())], body, []
    ),
    claims=claims,
    figure=_draw(results, change),
  )


def _draw(results: Results, change) -> Figure:
  figure = Figure(figsize=(6.6, 2.6))
  left, right = figure.subplots(1, 2)
  places = np.arange(len(SPLITS))
  for ax, arms, measure in (
    (left, ('sft', 'grpo'), change),
    (right, tuple(ARMS), results.accuracy),
  ):
    width = 0.75 / len(arms)
    for arm, shift in zip(arms, width * (np.arange(len(arms)) - len(arms) / 2)):
      values = [measure(arm, split) for split in SPLITS]
      colour = COLOURS[arm.rpartition('_')[2]]
      shift += width / 2
      ax.bar(
        places + shift,
        [v.mean() for v in values],
        width,
        color=colour,
        label=ARMS[arm],
        hatch='///' if arm == 'sft_grpo' else '',
        edgecolor='white',
      )
      points(ax, places + shift, values, fmt='none', color='#333333')
    ax.set_xticks(places, [name.replace(' ', '\n') for name in SPLITS.values()])
    ax.grid(visible=False, axis='x')
  left.axhline(0, color='#333333', lw=0.8)
  left.set_ylabel('change of accuracy from base')
  left.set_title('(a)', loc='left')
  right.set_ylabel('accuracy')
  right.set_ylim(0, 1)
  right.set_title('(b)', loc='left')
  legend(figure, right)
  return figure
