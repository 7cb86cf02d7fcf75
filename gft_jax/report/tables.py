"""Tables for a terminal, Markdown and LaTeX."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gft_jax.report.run import ACCURACY, Evaluations, read_run
from gft_jax.types import Numbers

DRIFT = {
  'eval/kl_to_base': 'KL to base<br>per token',
  'eval/kl_to_base_per_response': 'KL to base<br>per response',
  'eval/entropy': 'entropy<br>per token',
}


def table(source: str | pathlib.Path | Evaluations) -> str:
  """Final evaluations as text for a terminal: avg@n, KL and entropy.

  Args:
    source: a run directory, or stage -> evaluation as `train` returns them.
  """
  if not isinstance(source, Mapping):
    source = read_run(pathlib.Path(source)).evaluations()
  columns = [n for n in columns_of(source) if '/pass@' not in n]
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
    cells = [f'eval/{name}/{column}' for name in names]
    if any(cell not in metrics for cell in cells):
      return '–'
    return f'{100 * np.mean([metrics[cell] for cell in cells]):.2f}'

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
    key: float(np.mean([values[key] for values in found.values()]))
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


def columns_of(evaluations: Evaluations) -> list[str]:
  """Accuracies in order of appearance, then drift."""
  names = dict.fromkeys(n for record in evaluations.values() for n in record)
  accuracies = [n for n in names if re.fullmatch(ACCURACY, n)]
  return accuracies + [name for name in DRIFT if name in names]


def _text_cell(record: Numbers, name: str) -> str:
  value, interval = number_and_interval(record, name)
  return f'{value} ({interval})' if interval else value


def number_and_interval(record: Numbers, name: str) -> tuple[str, str]:
  """A metric and its interval as text; a dash, and '', where not measured."""
  if name not in record:
    return '–', ''
  if f'{name}_low' not in record:
    return f'{record[name]:.3f}', ''
  low, high = record[f'{name}_low'], record[f'{name}_high']
  return f'{record[name]:.3f}', f'{low:.3f}–{high:.3f}'


def write(path: pathlib.Path, table: Table) -> None:
  """PATH.md and PATH.tex."""
  path.with_suffix('.md').write_text(markdown(table))
  path.with_suffix('.tex').write_text(latex(table))
