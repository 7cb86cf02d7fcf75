"""Figures of a run; each is None where it was not measured.

Colours are those of Okabe and Ito (2008), which stay apart for colour-blind
readers; no figure needs its colours to be understood.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator

from gft_jax.report.run import Run, Series
from gft_jax.types import Numbers

BLUE, VERMILLION, ORANGE, GREEN = '#0072B2', '#D55E00', '#E69F00', '#009E73'
SKY, PURPLE, GREY = '#56B4E9', '#CC79A7', '#999999'
YELLOW, SILVER = '#F0E442', '#D0D0D0'

STYLE = {
  'axes.axisbelow': True,
  'axes.grid': True,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlesize': 9,
  'figure.constrained_layout.use': True,
  'font.size': 9,
  'grid.color': '#E4E4E4',
  'grid.linewidth': 0.6,
  'legend.frameon': False,
  'lines.linewidth': 1.5,
  'savefig.dpi': 200,
  'svg.hashsalt': 'gft_jax',  # the same run gives the same bytes
}

ORIGIN_STYLES = {
  'expert': (VERMILLION, '--'),
  'teacher': (ORANGE, ':'),
  'self': (BLUE, '-'),
}
# In the order of the bar and of the table: what is useful, then the rest.
PHASE_COLOURS = {
  'sample': BLUE,
  'reward': ORANGE,
  'update': GREEN,
  'data': GREY,
  'compile': YELLOW,
  'evaluate': PURPLE,
  'save': SKY,
  'start': SILVER,
  'lost': VERMILLION,
}
COLUMNS = 4
LEGEND_COLUMNS = 5


def accuracy(run: Run) -> Figure | None:
  """One row per stage, one panel per split: avg@n and the largest pass@k."""
  splits = run.splits()
  stages = list(run.evaluations())
  if not splits or not stages:
    return None
  figure, axes = _rows(stages, len(splits))
  for ax, split in zip(axes, splits):
    ax.set_title(split)
    marks = _accuracy_marks(run, split)
    for (name, style), shift in zip(marks, _shifts(len(marks))):
      for y, stage in enumerate(stages):
        _interval(ax, run.final(stage), name, y + shift, style)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ['0', '.25', '.5', '.75', '1'])
  figure.supxlabel('accuracy', fontsize=9)
  _legend(figure, axes)
  return figure


def learning(run: Run) -> Figure | None:
  """avg@n over the steps of each stage that was evaluated more than once."""
  names = [
    n
    for n in run.names(r'eval/[^/]+/avg@\d+')
    if n.split('/')[1] in run.splits()
  ]
  stages = [
    s for s in run.records if any(len(run.series(s, n)[0]) > 1 for n in names)
  ]
  if not stages:
    return None
  figure, axes = _panels(stages)
  styles = zip((BLUE, VERMILLION, GREEN, PURPLE, ORANGE), 'osD^v')
  for name, (colour, marker) in zip(names, styles):
    for ax, stage in zip(axes, stages):
      steps, values = run.series(stage, name)
      label = name.split('/')[1]
      ax.plot(steps, values, color=colour, marker=marker, ms=4, label=label)
      _, low = run.series(stage, f'{name}_low')
      _, high = run.series(stage, f'{name}_high')
      if len(low) == len(high) == len(steps):
        ax.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
      ax.set_ylim(0, 1)
  return _finish(figure, axes, 'accuracy')


def drift(run: Run) -> Figure | None:
  """Entropy, and KL to the base policy, at the end of each stage."""
  names = {
    'eval/entropy': 'entropy (nats per token)',
    'eval/kl_to_base': 'KL to base (nats per token)',
  }
  names = {n: label for n, label in names.items() if run.stages_with(n)}
  stages = [s for s in run.records if any(n in run.final(s) for n in names)]
  if not stages:
    return None
  figure, axes = _rows(stages, len(names))
  for ax, (name, label) in zip(axes, names.items()):
    for y, stage in enumerate(stages):
      if name in run.final(stage):
        value = run.final(stage)[name]
        ax.barh(y, value, height=0.55, color=BLUE)
        ax.annotate(
          f'{value:.3g}',
          (value, y),
          (3, 0),
          textcoords='offset points',
          va='center',
          fontsize=8,
        )
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.margins(x=0.18)
  return figure


def entropy(run: Run) -> Figure | None:
  return _curves(run, 'train/entropy', 'entropy (nats per token)')


def grad_norm(run: Run) -> Figure | None:
  return _curves(run, 'train/grad_norm', 'gradient norm', log=True)


def reward(run: Run) -> Figure | None:
  """Mean reward of the answers of each origin over the steps of a stage."""
  names = {f'train/reward_{origin}': origin for origin in ORIGIN_STYLES}
  stages = run.stages_with(*names)
  if not stages:
    return None
  figure, axes = _panels(stages)
  for ax, stage in zip(axes, stages):
    for name, origin in names.items():
      colour, line = ORIGIN_STYLES[origin]
      _curve(ax, run.series(stage, name), colour, line, origin)
  return _finish(figure, axes, 'mean reward')


def coefficients(run: Run) -> Figure | None:
  """Histograms of 1/p and C/p over tokens, both axes logarithmic."""
  stages = list(run.weights)
  if not stages:
    return None
  figure, axes = _panels(stages)
  largest = max(before.max() for before, _ in run.weights.values())
  edges = np.geomspace(1, max(10.0, largest * 1.01), 31)
  for ax, stage in zip(axes, stages):
    before, after = (_shares(w, edges) for w in run.weights[stage])
    ax.stairs(before, edges, fill=True, color='#C8C8C8', label='before: 1/p')
    ax.stairs(after, edges, color=BLUE, lw=1.5, label='after: C/p')
    ax.set_xscale('log')
    ax.set_yscale('log')
    ax.minorticks_off()
    ax.set_xlim(left=0.6)
    ax.set_ylim(0.3 / max(len(w) for w, _ in run.weights.values()), 1.5)
  return _finish(figure, axes, 'share of tokens', 'weight on the gradient of p')


def seconds(run: Run) -> Figure | None:
  """Seconds by phase, summed over each stage."""
  phases = [p for p in PHASE_COLOURS if run.stages_with(f'time/{p}')]
  stages = run.stages_with(*(f'time/{phase}' for phase in phases))
  if not stages:
    return None
  figure, axes = _rows(stages, 1, width=5.0)
  left = np.zeros(len(stages))
  for phase in phases:
    total = [run.series(s, f'time/{phase}')[1].sum() for s in stages]
    axes[0].barh(
      range(len(stages)),
      total,
      left=left,
      height=0.6,
      color=PHASE_COLOURS[phase],
      edgecolor='white',
      linewidth=0.5,
      label=phase,
    )
    left += total
  axes[0].set_xlabel('seconds')
  _legend(figure, axes)
  return figure


FIGURES: dict[str, tuple[Callable[[Run], Figure | None], str]] = {
  'accuracy': (
    accuracy,
    'Accuracy (avg@n, the share of right answers) and pass@k at the end of each'
    ' stage on each held-out split, with 95 % intervals over problems.',
  ),
  'learning': (
    learning,
    'Accuracy during the stages that were evaluated more than once, with 95 %'
    ' intervals over problems.',
  ),
  'drift': (
    drift,
    "Entropy, and exact KL divergence from the base policy, on the policy's"
    ' own samples at temperature 1 at the end of each stage.',
  ),
  'reward': (
    reward,
    'Mean reward of expert, teacher and sampled answers in training (thin:'
    ' each step; thick: moving average).',
  ),
  'entropy': (
    entropy,
    'Entropy of the policy at the tokens it trained on (thin: each step;'
    ' thick: moving average).',
  ),
  'grad_norm': (
    grad_norm,
    'Global norm of the gradient before clipping (thin: each step; thick:'
    ' moving average).',
  ),
  'coefficients': (
    coefficients,
    'Weight that each token of held-out expert answers puts on the gradient'
    ' of its probability p: 1/p before rectification, C/p after.',
  ),
  'seconds': (
    seconds,
    'Measured seconds by phase, summed over each stage; compilation stands'
    ' apart from the phases in which it happened.',
  ),
}


def _rows(
  stages: Sequence[str], panels: int, width: float = 2.3
) -> tuple[Figure, list[Axes]]:
  """Panels side by side that share one row per stage, the first on top."""
  size = (1.4 + width * panels, 1.1 + 0.34 * len(stages))
  figure = Figure(figsize=size)
  axes = list(figure.subplots(1, panels, sharey=True, squeeze=False).flat)
  axes[0].set_yticks(range(len(stages)), stages)
  axes[0].set_ylim(len(stages) - 0.4, -0.6)
  for ax in axes:
    ax.grid(visible=False, axis='y')
    ax.tick_params(axis='y', length=0)
  layout = figure.get_layout_engine()
  if isinstance(layout, ConstrainedLayoutEngine):
    layout.set(wspace=0.06)
  return figure, axes


def _panels(stages: Sequence[str]) -> tuple[Figure, list[Axes]]:
  """One panel per stage on a common y axis; steps differ between stages."""
  columns = min(COLUMNS, len(stages))
  rows = math.ceil(len(stages) / columns)
  wide = 3.6 if columns == 1 else 2.0
  figure = Figure(figsize=(0.9 + wide * columns, 0.9 + 1.6 * rows))
  axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
  for ax in axes[len(stages) :]:
    ax.remove()
  for ax, stage in zip(axes, stages):
    ax.set_title(stage)
    ax.xaxis.set_major_locator(
      MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10])
    )
  return figure, axes[: len(stages)]


def _finish(
  figure: Figure, axes: Sequence[Axes], y: str, x: str = 'step'
) -> Figure:
  figure.supxlabel(x, fontsize=9)
  figure.supylabel(y, fontsize=9)
  _legend(figure, axes)
  return figure


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
  """One legend above the panels, each label once, in rows of a few."""
  handles = {}
  for ax in axes:
    for handle, label in zip(*ax.get_legend_handles_labels()):
      handles.setdefault(label, handle)
  if handles:
    columns = min(len(handles), LEGEND_COLUMNS)
    figure.legend(
      handles.values(), handles, loc='outside upper center', ncols=columns
    )


def _curves(
  run: Run, name: str, label: str, *, log: bool = False
) -> Figure | None:
  stages = run.stages_with(name)
  if not stages:
    return None
  figure, axes = _panels(stages)
  for ax, stage in zip(axes, stages):
    _curve(ax, run.series(stage, name), BLUE, '-', None)
    if log and run.series(stage, name)[1].min() > 0:
      ax.set_yscale('log')
      ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      ax.yaxis.set_major_formatter(FormatStrFormatter('%g'))
      ax.minorticks_off()
  return _finish(figure, axes, label)


def _curve(
  ax: Axes, series: Series, colour: str, line: str, label: str | None
) -> None:
  steps, values = series
  if len(steps):
    ax.plot(steps, values, color=colour, lw=0.6, alpha=0.35)
    dot = 'o' if len(steps) < 10 else None  # one step alone draws no line
    mean = _smooth(values)
    ax.plot(steps, mean, line, color=colour, label=label, marker=dot, ms=3)


def _smooth(values: np.ndarray) -> np.ndarray:
  """Centred mean over a tenth of the series, over fewer at its ends."""
  kernel = np.ones(2 * (len(values) // 20) + 1)
  totals = np.convolve(values, kernel, 'same')
  return totals / np.convolve(np.ones_like(values), kernel, 'same')


def _shares(weights: np.ndarray, edges: np.ndarray) -> np.ndarray:
  counts, _ = np.histogram(np.clip(weights, edges[0], edges[-1]), edges)
  return counts / len(weights)


def _accuracy_marks(run: Run, split: str) -> list[tuple[str, dict]]:
  """(metric, style) of avg@n, and of pass@k for the largest k."""
  averages = run.names(rf'eval/{re.escape(split)}/avg@\d+')
  passes = run.names(rf'eval/{re.escape(split)}/pass@\d+')
  largest = max(passes, key=lambda n: int(n.rpartition('@')[2]), default=None)
  hollow = {'color': VERMILLION, 'marker': 's', 'mfc': 'white'}
  marks = [(n, {'color': BLUE, 'marker': 'o'}) for n in averages[:1]]
  return marks + ([(largest, hollow)] if largest else [])


def _shifts(count: int) -> Iterable[float]:
  return np.linspace(-0.14, 0.14, count) if count > 1 else (0.0,)


def _interval(
  ax: Axes, record: Numbers, name: str, y: float, style: dict
) -> None:
  if name not in record:
    return
  if f'{name}_low' in record and f'{name}_high' in record:
    ends = record[f'{name}_low'], record[f'{name}_high']
    ax.plot(ends, (y, y), color=style['color'], lw=1.5)
  ax.plot(record[name], y, ls='', ms=5, label=name.split('/')[-1], **style)
