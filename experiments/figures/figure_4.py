"""Figure 4: pipelines of SFT, GFT and GRPO."""

import numpy as np
from matplotlib.figure import Figure

from figures.drawing import COLOURS, band, points
from figures.results import SPLITS, Results, accuracy_table
from figures.verdicts import Claim, Item
from gft_jax.report import figures

PIPELINES = {
  'sft': 'SFT',
  'gft': 'GFT',
  'grpo': 'GRPO',
  'sft_2': 'SFT, two phases',
  'sft_grpo': 'SFT → GRPO',
  'sft_gft': 'SFT → GFT',
  'gft_grpo': 'GFT → GRPO',
  'grpo_2': 'GRPO, two phases',
  'sft_grpo_2': 'SFT → GRPO, three phases',
  'sft_gft_grpo': 'SFT → GFT → GRPO',
  'grpo_3': 'GRPO, three phases',
}
PAPER = {
  'sft': '60.2 43.9 31.2 65.0',
  'grpo': '65.2 38.3 44.8 53.3',
  'sft_grpo': '62.4 48.2 35.8 71.7',
  'sft_gft': '69.7 53.7 46.6 79.3',
  'gft_grpo': '72.4 50.9 48.9 79.7',
  'sft_gft_grpo': '71.7 58.7 48.4 90.2',
}
# Chain of stages -> its name, colour and line.
CURVES = {
  ('grpo', 'grpo_2', 'grpo_3'): ('GRPO', figures.BLUE, ':'),
  ('gft', 'gft_grpo'): ('GFT → GRPO', figures.GREEN, '-'),
  ('sft', 'sft_gft', 'sft_gft_grpo'): ('SFT → GFT → GRPO', '#333333', '-.'),
  ('sft', 'sft_grpo', 'sft_grpo_2'): ('SFT → GRPO', figures.VERMILLION, '--'),
}


def item(results: Results) -> Item:
  pairs = {
    'SFT → GFT above SFT (of half its steps)': ('sft_gft', 'sft'),
    'SFT → GFT above SFT of as many steps': ('sft_gft', 'sft_2'),
    'GFT → GRPO above GRPO (of half its steps)': ('gft_grpo', 'grpo'),
    'GFT → GRPO above GRPO of as many steps': ('gft_grpo', 'grpo_2'),
    'SFT → GFT → GRPO above SFT → GRPO (of two thirds of its steps)': (
      *('sft_gft_grpo', 'sft_grpo'),
    ),
    'SFT → GFT → GRPO above SFT → GRPO of as many steps': (
      *('sft_gft_grpo', 'sft_grpo_2'),
    ),
    'SFT → GFT → GRPO above GRPO (of a third of its steps)': (
      *('sft_gft_grpo', 'grpo'),
    ),
    'SFT → GFT → GRPO above GRPO of as many steps': ('sft_gft_grpo', 'grpo_3'),
  }
  return Item(
    title='Figure 4: pipelines',
    paper=(
      'The last column. There SFT → GRPO is below GRPO on two benchmarks and'
      ' above it on two, and so is SFT → GFT → GRPO beside GFT → GRPO. The paper has no GRPO of as many steps as its chains.'
    ),
    table=accuracy_table(
      results,
      PIPELINES,
      paper={'Math OAI, MMLU-STEM, AMC23, SAT Math': PAPER},
    ),
    claims=[
      Claim(
        f'{text}, {SPLITS[split]}',
        results.accuracy(better, split) - results.accuracy(worse, split),
        # The paper's chains have more steps than what they stand beside.
        paper='as many steps' not in text,
      )
      for split in ('test', 'ood_length')
      for text, (better, worse) in pairs.items()
    ]
    + [
      Claim(
        'SFT → GFT → GRPO above GFT → GRPO (of two thirds of its steps),'
        f' {SPLITS[split]}',
        results.accuracy('sft_gft_grpo', split)
        - results.accuracy('gft_grpo', split),
        paper=False,
      )
      for split in ('test', 'ood_length')
    ],
    figure=_draw(results),
    note='SFT → GRPO against GRPO stands at Figure 1.',
  )


def _draw(results: Results) -> Figure:
  figure = Figure(figsize=(6.6, 3.6))
  left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
  rows = np.arange(len(PIPELINES))
  values = [results.accuracy(arm) for arm in PIPELINES]
  base = results.accuracy('base')
  # The colour of the last stage; hatched where the first is SFT.
  left.barh(
    rows,
    [v.mean() for v in values],
    height=0.65,
    color=[
      COLOURS[label.split(',')[0].split(' → ')[-1].lower()]
      for label in PIPELINES.values()
    ],
    hatch=[
      '///' if label.startswith('SFT →') else '' for label in PIPELINES.values()
    ],
    edgecolor='white',
  )
  points(left, rows, values, horizontal=True, fmt='none', color='#333333')
  left.axvline(base.mean(), color='#333333', ls=':', lw=1)
  left.annotate(
    'base', (base.mean(), -0.55), (3, 0), textcoords='offset points'
  )
  left.set_yticks(rows, PIPELINES.values())
  left.invert_yaxis()
  left.grid(visible=False, axis='y')
  left.set_xlim(0, 1.04)
  left.set_xlabel(f'accuracy, {SPLITS["test"]}')
  name = results.accuracy_name()
  for stages, (label, colour, line) in CURVES.items():
    steps, columns, offset = [0], [base], 0
    for stage in stages:
      own, curve = results.curve(stage, name)
      steps += list(offset + own)
      columns += list(curve.T)
      offset += own[-1]
    style = {'color': colour, 'ls': line, 'label': label}
    band(right, np.array(steps), np.transpose(columns), **style)
  phase = results.curve('sft', name)[0][-1]
  for boundary in (phase, 2 * phase):
    right.axvline(boundary, color='#999999', lw=0.8)
  right.set_xticks(phase * np.arange(4))
  right.set_xlabel('step')
  right.set_ylim(0, 1.04)
  right.set_ylabel(f'accuracy, {SPLITS["test"]}')
  # Of this panel alone: bars have the colour of their last stage.
  right.legend(loc='lower right', ncols=2, fontsize=6.5, columnspacing=1.0)
  return figure
