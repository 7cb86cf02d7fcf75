"""Figure 4: pipelines of SFT, GFT and GRPO."""

import numpy as np
from matplotlib.figure import Figure

from figures.results import (
  SPLITS,
  Claim,
  Item,
  Results,
  accuracy_table,
  interval,
)
from gft_jax import report

PIPELINES = {
  'sft': 'SFT',
  'gft': 'GFT',
  'grpo': 'GRPO',
  'sft_grpo': 'SFT → GRPO',
  'sft_gft': 'SFT → GFT',
  'gft_grpo': 'GFT → GRPO',
  'grpo_2': 'GRPO, two phases',
  'sft_gft_grpo': 'SFT → GFT → GRPO',
  'grpo_3': 'GRPO, three phases',
}
PAPER = {
  'sft': '60.2 / 31.2',
  'grpo': '65.2 / 44.8',
  'sft_grpo': '62.4 / 35.8',
  'sft_gft': '69.7 / 46.6',
  'gft_grpo': '72.4 / 48.9',
  'sft_gft_grpo': '71.7 / 48.4',
}
# Chain of stages -> its name, colour and line.
CURVES = {
  ('sft', 'sft_grpo'): ('SFT → GRPO', report.VERMILLION, '--'),
  ('sft', 'sft_gft', 'sft_gft_grpo'): (
    'SFT → GFT → GRPO',
    report.ORANGE,
    '-.',
  ),
  ('gft', 'gft_grpo'): ('GFT → GRPO', report.GREEN, '-'),
  ('grpo', 'grpo_2', 'grpo_3'): ('GRPO', report.BLUE, ':'),
}


def item(results: Results) -> Item:
  def above(better, worse, split='test'):
    return results.accuracy(better, split) - results.accuracy(worse, split)

  pairs = {
    'SFT → GFT above SFT': ('sft_gft', 'sft'),
    'SFT → GRPO below GRPO': ('grpo', 'sft_grpo'),
    'GFT → GRPO above GRPO': ('gft_grpo', 'grpo'),
    'GFT → GRPO above GRPO of as many steps': ('gft_grpo', 'grpo_2'),
    'SFT → GFT → GRPO above SFT → GRPO': ('sft_gft_grpo', 'sft_grpo'),
    'SFT → GFT → GRPO above GRPO': ('sft_gft_grpo', 'grpo'),
    'SFT → GFT → GRPO above GRPO of as many steps': ('sft_gft_grpo', 'grpo_3'),
  }
  return Item(
    title='Figure 4: pipelines',
    paper=(
      'The two numbers are Math OAI and AMC23. The paper has no GRPO of as many'
      ' steps as its chains.'
    ),
    table=accuracy_table(results, PIPELINES, paper={'Math OAI / AMC23': PAPER}),
    claims=[Claim(text, above(*pair)) for text, pair in pairs.items()],
    figure=_draw(results),
  )


def _draw(results: Results) -> Figure:
  figure = Figure(figsize=(6.6, 3.0))
  left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
  rows = np.arange(len(PIPELINES))
  # Of the last curve that it is on: SFT alone stands first on two.
  colours = {
    stage: colour
    for stages, (_, colour, _) in reversed(CURVES.items())
    for stage in stages
  }
  values = [results.accuracy(arm) for arm in PIPELINES]
  left.barh(
    rows,
    [v.mean() for v in values],
    height=0.65,
    color=[colours[arm] for arm in PIPELINES],
  )
  reaches = [interval(v).reach for v in values]
  left.errorbar(
    [v.mean() for v in values],
    rows,
    xerr=reaches,
    fmt='none',
    color='#333333',
    capsize=2,
    lw=1.2,
  )
  left.axvline(results.accuracy('base').mean(), color='#333333', ls=':', lw=1)
  left.set_yticks(rows, PIPELINES.values())
  left.invert_yaxis()
  left.grid(visible=False, axis='y')
  left.set_xlabel(f'accuracy, {SPLITS["test"]}')
  name = results.accuracy_name()
  for stages, (label, colour, line) in CURVES.items():
    steps, means, offset = [0], [results.accuracy('base').mean()], 0
    for stage in stages:
      own, curve = results.curve(stage, name)
      steps += list(offset + own)
      means += list(curve.mean(axis=0))
      offset += own[-1]
    right.plot(steps, means, color=colour, ls=line, label=label)
  phase = results.curve('sft', name)[0][-1]
  for boundary in (phase, 2 * phase):
    right.axvline(boundary, color='#999999', lw=0.8)
  right.set_xticks(phase * np.arange(4))
  right.set_xlabel('step')
  right.set_ylabel(f'accuracy, {SPLITS["test"]}')
  right.legend(loc='lower right')
  return figure
