"""A run directory in, figures and one page out.

`workdir`/report/ then holds a PNG and an SVG of each figure and index.html, one
file that opens from disk, prints, and can be sent to somebody. What was not
measured is left out. Colours are those of Okabe and Ito (2008), which stay
apart for colour-blind readers; no figure needs its colours to be understood.
"""

import base64
import html
import io
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator

from gft_jax import config as config_lib
from gft_jax import report_groups, writers

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
USEFUL = ('sample', 'reward', 'update')
PHASES = {
  'sample': 'rollouts',
  'reward': 'rewards',
  'update': 'updates',
  'data': 'data',
  'compile': 'compilation',
  'evaluate': 'evaluation',
  'save': 'saving',
  'start': 'start-up',
  'lost': 'work lost to interruptions',
  'down': 'down, no process at work',
  'other': 'other',
}
COLUMNS = 4
LEGEND_COLUMNS = 5
ACCURACY = r'eval/[^/]+/(avg|pass)@\d+'
DRIFT = {
  'eval/kl_to_base': 'KL to base<br>per token',
  'eval/kl_to_base_per_response': 'KL to base<br>per response',
  'eval/entropy': 'entropy<br>per token',
}

Series = tuple[np.ndarray, np.ndarray]
Evaluations = Mapping[str, writers.Record]


class Run(NamedTuple):
  """What a run directory says.

  Attributes:
    name: of the directory.
    config: its settings.
    records: stage -> its records in order, for the stages that have any.
    weights: stage -> ([n] 1/p, [n] C/p) over tokens of expert answers.
    groups: stage -> some of its groups.
  """

  name: str
  config: config_lib.Config
  records: dict[str, list[writers.Record]]
  weights: dict[str, tuple[np.ndarray, np.ndarray]]
  groups: dict[str, report_groups.Shown]

  def series(self, stage: str, name: str) -> Series:
    """Steps and values of one metric in one stage; empty if not measured."""
    pairs = [(r['step'], r[name]) for r in self.records[stage] if name in r]
    steps, values = zip(*pairs) if pairs else ((), ())
    return np.array(steps), np.array(values, float)

  def stages_with(self, *names: str) -> list[str]:
    """Stages that measured at least one of `names`."""
    return [
      stage
      for stage, records in self.records.items()
      if any(name in record for record in records for name in names)
    ]

  def final(self, stage: str) -> writers.Record:
    """The last evaluation of a stage, or {}."""
    for record in reversed(self.records.get(stage, [])):
      if any(name.startswith('eval/') for name in record):
        return record
    return {}

  def evaluations(self) -> Evaluations:
    """Stage -> its last evaluation, for the stages that have one."""
    last = {stage: self.final(stage) for stage in self.records}
    return {stage: record for stage, record in last.items() if record}

  def names(self, pattern: str) -> list[str]:
    """Names that match in any record, in order of appearance."""
    records = (r for records in self.records.values() for r in records)
    return [
      name
      for name in dict.fromkeys(name for r in records for name in r)
      if re.fullmatch(pattern, name)
    ]

  def total(self, name: str) -> float:
    """The sum of a metric over all records."""
    return float(sum(self.series(s, name)[1].sum() for s in self.records))

  def splits(self) -> list[str]:
    names = self.names(ACCURACY)
    return list(dict.fromkeys(name.split('/')[1] for name in names))


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
  """Writes the figures and the page; returns the path of index.html.

  Reads config.json, metrics.jsonl and, where they exist, the arrays `before`
  and `after` of report/coefficients/STAGE.npz, and report/groups/STAGE.json.

  Raises:
    ConfigError: `workdir` holds no run, or one that has measured nothing.
  """
  run = read_run(pathlib.Path(workdir))
  folder = pathlib.Path(workdir) / 'report'
  folder.mkdir(exist_ok=True)
  parts = []
  with matplotlib.rc_context(STYLE):
    for name, (draw, caption) in FIGURES.items():
      figure = draw(run)
      if figure is None:
        continue
      figure.savefig(folder / f'{name}.png')
      figure.set_layout_engine('none')  # found once, it serves both files
      vector = io.BytesIO()
      figure.savefig(vector, format='svg', metadata={'Date': None})
      (folder / f'{name}.svg').write_bytes(vector.getvalue())
      parts.append(picture(name, vector.getvalue(), caption))
  page = folder / 'index.html'
  page.write_text(_page(run, parts), encoding='utf-8')
  return page


def table(source: str | pathlib.Path | Evaluations) -> str:
  """Final evaluations as text for a terminal: avg@n, KL and entropy.

  Args:
    source: a run directory, or stage -> evaluation as `train` returns them.
  """
  if not isinstance(source, Mapping):
    source = read_run(pathlib.Path(source)).evaluations()
  columns = [n for n in _columns(source) if '/pass@' not in n]
  rows = [['stage', *(name.removeprefix('eval/') for name in columns)]]
  for stage, record in source.items():
    rows.append([stage, *(_text_cell(record, name) for name in columns)])
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join(
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for row in rows
  )


class Table(NamedTuple):
  """Cells of text.

  Attributes:
    head: of the columns.
    body: rows.
    foot: the last row, set apart; none if it is empty.
  """

  head: list[str]
  body: list[list[str]]
  foot: list[str]


def benchmark_table(metrics: Mapping[str, float]) -> Table:
  """Benchmarks in rows, in percent, as in the paper's Table 1.

  The columns are avg@n with its 95 % interval over problems, and pass@k and
  maj@k of the largest k, if more than 1. The foot is the plain mean over
  benchmarks.

  Args:
    metrics: 'eval/BENCHMARK/avg@n' and so on -> number.
  """
  names = dict.fromkeys(
    name.split('/')[1] for name in metrics if re.fullmatch(ACCURACY, name)
  )
  measured = dict.fromkeys(name.split('/')[-1] for name in metrics)
  columns = []
  for kind in ('avg', 'pass', 'maj'):
    found = [n for n in measured if re.fullmatch(rf'{kind}@\d+', n)]
    columns += sorted(found, key=lambda n: int(n.partition('@')[2]))[-1:]
  columns = [n for n in columns if n.startswith('avg') or not n.endswith('@1')]

  def percent(name: str) -> str:
    return f'{100 * metrics[name]:.2f}' if name in metrics else '–'

  def mean(column: str) -> str:
    values = [metrics.get(f'eval/{name}/{column}') for name in names]
    return f'{100 * np.mean(values):.2f}' if None not in values else '–'

  body = []
  for name in names:
    first, *others = (f'eval/{name}/{column}' for column in columns)
    interval = f'{percent(f"{first}_low")}–{percent(f"{first}_high")}'
    problems = str(metrics.get(f'eval/{name}/problems', '–'))
    others = [percent(other) for other in others]
    body.append([name, problems, percent(first), interval, *others])
  averages = [mean(column) for column in columns]
  return Table(
    ['benchmark', 'problems', columns[0], '95 % interval', *columns[1:]],
    body,
    ['average', '', averages[0], '', *averages[1:]],
  )


def comparison_table(found: Mapping[str, Mapping[str, float]]) -> Table:
  """Before and after in percent, and their paired difference in points.

  Args:
    found: benchmark -> what `generations.paired` gives.
  """

  def points(value: float) -> str:
    return f'{100 * value:+.2f}'.replace('-', '−')

  body = [
    [
      name,
      str(values['problems']),
      f'{100 * values["before"]:.2f}',
      f'{100 * values["after"]:.2f}',
      points(values['difference']),
      f'{points(values["difference_low"])} to'
      f' {points(values["difference_high"])}',
      str(values['gained']),
      str(values['lost']),
    ]
    for name, values in found.items()
  ]
  mean = {
    key: np.mean([values[key] for values in found.values()])
    for key in ('before', 'after', 'difference')
  }
  return Table(
    [
      *('benchmark', 'problems', 'before', 'after', 'difference'),
      *('95 % interval', 'gained', 'lost'),
    ],
    body,
    [
      *('average', '', f'{100 * mean["before"]:.2f}'),
      *(f'{100 * mean["after"]:.2f}', points(mean['difference']), '', '', ''),
    ],
  )


def markdown(table: Table) -> str:
  """Aligned, so that it reads well in a terminal too."""
  rows = [table.head, *table.body, *([table.foot] if table.foot else [])]
  widths = [max(map(len, column)) for column in zip(*rows)]

  def line(cells: Sequence[str]) -> str:
    first, *others = zip(cells, widths)
    aligned = [first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)]
    return f'| {" | ".join(aligned)} |'

  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
  lines = [line(table.head), line(rule), *map(line, rows[1:])]
  return '\n'.join(lines) + '\n'


def latex(table: Table) -> str:
  """A tabular with the rules of the package booktabs."""
  marks = {'_': r'\_', '%': r'\%', '&': r'\&', '–': '--', '−': '$-$'}
  escape = str.maketrans(marks)

  def line(cells: Sequence[str]) -> str:
    return ' & '.join(cell.translate(escape) for cell in cells) + r' \\'

  return '\n'.join(
    [
      rf'\begin{{tabular}}{{l{"r" * (len(table.head) - 1)}}}',
      r'\toprule',
      line(table.head),
      r'\midrule',
      *map(line, table.body),
      r'\midrule',
      line(table.foot),
      r'\bottomrule',
      r'\end{tabular}',
      '',
    ]
  )


def goodput(run: Run) -> dict[str, float]:
  """What the wall time of a run went into: phase -> seconds.

  It is counted from the first start to the last record, whatever happened
  meanwhile. Steps whose records were cut back are 'lost', done again or not.
  Empty for a run that did not record its wall time.
  """
  records = [r for records in run.records.values() for r in records]
  if any('time/wall' not in record for record in records):
    return {}
  wall = max(record['time/wall'] for record in records)
  measured = [phase for phase in PHASES if phase != 'other']
  spent = {phase: run.total(f'time/{phase}') for phase in measured}
  return spent | {'other': max(wall - sum(spent.values()), 0.0)}


def read_run(workdir: pathlib.Path) -> Run:
  """Reads a run directory; raises ConfigError if there is nothing to tell."""
  path = workdir / 'config.json'
  config_lib.require(path.is_file(), f'{path} does not exist: not a run')
  config = config_lib.from_dict(config_lib.Config, json.loads(path.read_text()))
  records: dict[str, list[writers.Record]] = {}
  for record in writers.read_metrics(workdir):
    records.setdefault(record['stage'], []).append(record)
  config_lib.require(
    bool(records), f'{workdir / "metrics.jsonl"} is empty: nothing to report'
  )
  weights, groups = {}, {}
  for stage in records:
    path = workdir / 'report' / 'coefficients' / f'{stage}.npz'
    if path.is_file():
      with np.load(path, allow_pickle=False) as arrays:
        weights[stage] = (arrays['before'], arrays['after'])
    path = workdir / 'report' / 'groups' / f'{stage}.json'
    shown = report_groups.read(path) if path.is_file() else None
    if shown:
      groups[stage] = shown
  return Run(workdir.resolve().name, config, records, weights, groups)


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
    'Accuracy at the end of each stage on each held-out split, with 95 %'
    ' intervals over problems.',
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
  figure.get_layout_engine().set(wspace=0.06)
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
  ax: Axes, record: writers.Record, name: str, y: float, style: dict
) -> None:
  if name not in record:
    return
  if f'{name}_low' in record and f'{name}_high' in record:
    ends = record[f'{name}_low'], record[f'{name}_high']
    ax.plot(ends, (y, y), color=style['color'], lw=1.5)
  ax.plot(record[name], y, ls='', ms=5, label=name.split('/')[-1], **style)


def picture(name: str, vector: bytes, caption: str) -> str:
  """A figure of a page, within the page: `vector` is an SVG."""
  data = base64.b64encode(vector).decode()
  return (
    f'<figure id="{name}"><img alt="{html.escape(caption)}"'
    f' src="data:image/svg+xml;base64,{data}">'
    f'<figcaption>{html.escape(caption)}</figcaption></figure>'
  )


def _page(run: Run, figures: Sequence[str]) -> str:
  settings = json.dumps(config_lib.to_dict(run.config), indent=2)
  return PAGE.format(
    title=html.escape(f'{run.name}: {_objectives(run.config.stages)}'),
    lead=html.escape(_lead(run)),
    tree=_tree(run, ''),
    table=_table(run.evaluations()),
    goodput=_goodput(run),
    style=CSS + report_groups.CSS,
    groups=_groups(run),
    figures='\n'.join(figures),
    settings=html.escape(settings, quote=False),
  )


def _objectives(stages: Sequence[config_lib.Stage]) -> str:
  """'SFT → GFT' of a chain; of a tree, its objectives."""
  names = [stage.objective.upper() for stage in stages]
  starts = [stage.start for stage in stages]
  if starts == ['', *(stage.name for stage in stages[:-1])]:
    return ' → '.join(names)
  return ', '.join(dict.fromkeys(names))


def _lead(run: Run) -> str:
  spent = sum(run.total(f'time/{phase}') for phase in PHASE_COLOURS)
  steps = sum(records[-1]['step'] for records in run.records.values())
  reached = f'{len(run.records)} of {len(run.config.stages)} stages'
  minutes, rest = divmod(round(spent), 60)
  return f'{reached}, {steps} steps, {minutes} min {rest} s measured.'


def _tree(run: Run, start: str) -> str:
  items = []
  for stage in run.config.stages:
    if stage.start != start:
      continue
    notes = [stage.objective.upper(), f'{stage.steps} steps', *stage.overrides]
    if stage.name not in run.records:
      notes.append('not reached')
    items.append(
      f'<li><b>{html.escape(stage.name)}</b>'
      f' <small>{html.escape(", ".join(notes))}</small>'
      f'{_tree(run, stage.name)}</li>'
    )
  return f'<ul>{"".join(items)}</ul>' if items else ''


def _table(evaluations: Evaluations) -> str:
  """Stages by splits, with intervals; then drift."""
  if not evaluations:
    return '<p>No evaluation has finished.</p>'
  columns = _columns(evaluations)
  heads = ''.join(f'<th>{_head(name)}</th>' for name in columns)
  rows = ''.join(
    f'<tr><th scope="row">{html.escape(stage)}</th>'
    + ''.join(f'<td>{_cell(record, name)}</td>' for name in columns)
    + '</tr>'
    for stage, record in evaluations.items()
  )
  return (
    f'<table><thead><tr><th>stage</th>{heads}</tr></thead>'
    f'<tbody>{rows}</tbody></table>'
  )


def _goodput(run: Run) -> str:
  """The phases that took any time, and the share of the useful ones."""
  spent = goodput(run)
  if not spent:
    return ''
  wall = sum(spent.values())
  useful = sum(spent[phase] for phase in USEFUL)
  rows = ''.join(
    f'<tr><th scope="row">{PHASES[phase]}</th>'
    f'<td>{value:.1f}</td><td>{100 * value / wall:.1f} %</td></tr>'
    for phase, value in spent.items()
    if value
  )
  up = f'{100 * useful / (wall - spent["down"]):.1f}'
  return GOODPUT.format(
    share=f'{100 * useful / wall:.1f}',
    up=f' ({up} % while a process was at work)' if spent['down'] else '',
    programs=round(run.total('memory/programs')),
    cached=round(run.total('memory/programs_cached')),
    rows=rows,
  )


def _groups(run: Run) -> str:
  """The groups of each stage, unfolded where GFT was last at work."""
  if not run.groups:
    return ''
  named = [s for s, shown in run.groups.items() if shown.objective == 'gft']
  last = (named or list(run.groups))[-1]
  parts = [
    report_groups.section(shown, stage, opened=stage == last)
    for stage, shown in run.groups.items()
  ]
  return '\n'.join(['<h2>Sample groups</h2>', report_groups.LEGEND, *parts])


def _columns(evaluations: Evaluations) -> list[str]:
  """Accuracies in order of appearance, then drift."""
  names = dict.fromkeys(n for record in evaluations.values() for n in record)
  accuracies = [n for n in names if re.fullmatch(ACCURACY, n)]
  return accuracies + [name for name in DRIFT if name in names]


def _head(name: str) -> str:
  if name in DRIFT:
    return DRIFT[name]
  _, split, metric = name.split('/')
  return f'{html.escape(split)}<br>{metric}'


def _cell(record: writers.Record, name: str) -> str:
  value, interval = _number(record, name)
  return f'{value}<br><small>{interval}</small>' if interval else value


def _text_cell(record: writers.Record, name: str) -> str:
  value, interval = _number(record, name)
  return f'{value} ({interval})' if interval else value


def _number(record: writers.Record, name: str) -> tuple[str, str]:
  """A metric and its interval as text; a dash, and '', where not measured."""
  if name not in record:
    return '–', ''
  if f'{name}_low' not in record:
    return f'{record[name]:.3f}', ''
  low, high = record[f'{name}_low'], record[f'{name}_high']
  return f'{record[name]:.3f}', f'{low:.3f}–{high:.3f}'


GOODPUT = """<h2>Where the time went</h2>
<p>Goodput {share} %{up}: the share of rollouts, rewards and updates that count
in the time from the first start to the last record. {programs} programs were
compiled, {cached} of which the cache had.</p>
<table><thead><tr><th>phase</th><th>seconds</th><th>share</th></tr></thead>
<tbody>{rows}</tbody></table>"""

CSS = """
  body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto;
    max-width: 62rem; padding: 0 1rem; background: white }
  h1 { font-size: 1.6rem; margin-bottom: 0 }
  h2 { font-size: 1.2rem; margin-top: 2.2rem }
  small, figcaption, .lead { color: #555 }
  ul { padding-left: 1.4rem; margin: .2rem 0 }
  .wide { overflow-x: auto }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums }
  th, td { padding: .3rem .7rem; text-align: right; vertical-align: top;
    border-bottom: 1px solid #ddd; white-space: nowrap }
  thead th { border-bottom: 2px solid #555; vertical-align: bottom }
  th:first-child { text-align: left }
  td { line-height: 1.25 }
  figure { margin: 1.6rem 0; break-inside: avoid }
  figure img { max-width: 100%; height: auto }
  figcaption { font-size: .9rem; max-width: 44rem }
  pre { font-size: .8rem; overflow-x: auto; background: #f6f6f6; padding: 1rem }
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<h1>{title}</h1>
<p class="lead">{lead}</p>
<h2>Stages</h2>
{tree}
<h2>Final evaluations</h2>
<div class="wide">{table}</div>
<p><small>Under each accuracy its 95 % interval over problems. KL and entropy
in nats, on the policy's own samples at temperature 1.</small></p>
{goodput}
<h2>Figures</h2>
{figures}
{groups}
<h2>Settings</h2>
<details><summary>config.json</summary><pre>{settings}</pre></details>
</html>
"""
