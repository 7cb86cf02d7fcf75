"""Tables for a terminal, Markdown and LaTeX."""

import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gft_jax.report.run import (
  ACCURACY,
  MEAN_REWARD,
  ROUNDING,
  Evaluations,
  read_run,
)
from gft_jax.types import Numbers

DRIFT = {
  'eval/kl_to_base': 'KL to base<br>per token',
  'eval/kl_to_base_per_response': 'KL to base<br>per response',
  'eval/entropy': 'entropy<br>per token',
}


def table(source: str | pathlib.Path | Evaluations) -> str:
  """Final evaluations as text for a terminal: accuracy, KL and entropy.

  The mean reward has a column where it is not the accuracy.

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
  lines = [
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for row in rows
  ]
  note = what_is_right(source.values())
  return '\n'.join([*lines, *([note] if note else [])])


def what_is_right(evaluations: Iterable[Mapping[str, float]]) -> str:
  """A sentence with the threshold of evaluations; '' where none is stated."""
  found = {
    value
    for record in evaluations
    for name, value in record.items()
    if re.fullmatch(r'(eval/[^/]+/)?threshold', name)
  }
  if not found:
    return ''
  stated = ' or '.join(f'{value:g}' for value in sorted(found))
  return (
    f'Accuracy (avg@n) is the share of answers with a reward of {stated} or'
    ' more (eval.threshold).'
  )


class Table(NamedTuple):
  """Cells of text.

  Attributes:
    head: of the columns.
    body: rows.
    foot: the last row, set apart; none if it is empty.
    note: what stands under it, if anything.
  """

  head: list[str]
  body: list[list[str]]
  foot: list[str]
  note: str = ''


def benchmark_table(metrics: Mapping[str, float]) -> Table:
  """Benchmarks in rows, shares in percent, as in the paper's Table 1.

  The columns are the accuracy, avg@n, with its 95 % interval over problems,
  pass@k and maj@k of the largest k, if more than 1, and the mean reward where
  it is not the accuracy. The foot is the plain mean over benchmarks.

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
  if mean_rewards([metrics]):
    columns.append('mean_reward')

  def text(column: str, value: float) -> str:
    share = column != 'mean_reward'
    return f'{100 * value:.2f}' if share else f'{value:.3f}'

  def cell(name: str, column: str) -> str:
    found = metrics.get(f'eval/{name}/{column}')
    return '–' if found is None else text(column, found)

  def mean(column: str) -> str:
    found = [metrics.get(f'eval/{name}/{column}') for name in names]
    known = [value for value in found if value is not None]
    complete = len(known) == len(found)
    return text(column, float(np.mean(known))) if complete else '–'

  body = []
  for name in names:
    low, high = (cell(name, f'{columns[0]}_{end}') for end in ('low', 'high'))
    problems = str(metrics.get(f'eval/{name}/problems', '–'))
    first, *others = (cell(name, column) for column in columns)
    body.append([name, problems, first, f'{low}–{high}', *others])
  averages = [mean(column) for column in columns]
  columns = [name.replace('_', ' ') for name in columns]
  return Table(
    ['benchmark', 'problems', columns[0], '95 % interval', *columns[1:]],
    body,
    ['average', '', averages[0], '', *averages[1:]],
    what_is_right([metrics]),
  )


def comparison_table(found: Mapping[str, Mapping[str, float]]) -> Table:
  """Accuracy before and after in percent, and the paired difference in points.

  The mean rewards follow where they are not the accuracies.

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
  head = [
    *('benchmark', 'problems', 'before', 'after', 'difference'),
    *('95 % interval', 'gained', 'lost'),
  ]
  foot = [
    *('average', '', f'{100 * mean["before"]:.2f}'),
    *(f'{100 * mean["after"]:.2f}', points(mean['difference']), '', '', ''),
  ]
  rewards = {
    time: [v.get(f'mean_reward_{time}', v[time]) for v in found.values()]
    for time in ('before', 'after')
  }
  alike = all(
    math.isclose(reward, values[time], abs_tol=ROUNDING)
    for time in rewards
    for reward, values in zip(rewards[time], found.values())
  )
  for time in () if alike else rewards:
    head.append(f'mean reward {time}')
    for row, reward in zip(body, rewards[time]):
      row.append(f'{reward:.3f}')
    foot.append(f'{np.mean(rewards[time]):.3f}')
  return Table(head, body, foot, what_is_right(found.values()))


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
  note = ['', table.note] if table.note else []
  return '\n'.join([*lines, *note]) + '\n'


def latex(table: Table) -> str:
  """A tabular with the rules of the package booktabs; a note is a comment."""
  marks = {'_': r'\_', '%': r'\%', '&': r'\&', '–': '--', '−': '$-$'}
  escape = str.maketrans(marks)

  def line(cells: Sequence[str]) -> str:
    return ' & '.join(cell.translate(escape) for cell in cells) + r' \\'

  return '\n'.join(
    [
      *([f'% {table.note}'] if table.note else []),
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
  """Accuracies in order of appearance, mean rewards, then drift."""
  names = dict.fromkeys(n for record in evaluations.values() for n in record)
  accuracies = [n for n in names if re.fullmatch(ACCURACY, n)]
  rewards = mean_rewards(evaluations.values())
  return accuracies + rewards + [name for name in DRIFT if name in names]


def mean_rewards(evaluations: Iterable[Mapping[str, float]]) -> list[str]:
  """Names of the mean rewards, where one of them is not the accuracy beside it.

  Rewards of 0 and 1 have accuracies for means, and need no column.
  """
  names: dict[str, None] = {}
  differs = False
  for record in evaluations:
    for name, value in record.items():
      if re.fullmatch(MEAN_REWARD, name):
        names[name] = None
        head = name.removesuffix('mean_reward') + 'avg@'
        differs |= not any(
          math.isclose(value, other, abs_tol=ROUNDING)
          for beside, other in record.items()
          if beside.startswith(head)
        )
  return list(names) if differs else []


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
