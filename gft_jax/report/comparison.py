"""Arms side by side: means over seeds, a table and a figure."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import matplotlib
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from gft_jax.report import figures, tables
from gft_jax.report.run import restated
from gft_jax.types import Numbers


class Interval(NamedTuple):
  """Mean over seeds and half the width of its 95 % interval."""

  mean: float
  reach: float

  def __str__(self) -> str:
    if math.isnan(self.mean):
      return '–'
    if math.isnan(self.reach):
      return f'{self.mean:.3f}'
    return f'{self.mean:.3f} ± {self.reach:.3f}'


# Arm -> metric -> interval.
Table: TypeAlias = dict[str, dict[str, Interval]]

BASE = 'base'
COSTS = {
  'cost/steps': 'steps',
  'cost/tokens': 'trained tokens',
  'cost/seconds': 'seconds',
}


def interval(values: Sequence[float] | np.ndarray) -> Interval:
  """Student's t over seeds; one seed has no interval (NaN)."""
  n, mean = len(values), float(np.mean(values))
  if n == 1:
    return Interval(mean, math.nan)
  reach = scipy.stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5
  return Interval(mean, float(reach))


def summarize(
  results: Mapping[str, Sequence[Numbers]], base: Numbers | None = None
) -> Table:
  """Intervals over seeds, of what every seed has measured.

  Args:
    results: arm -> the results of its seeds; an arm without any is left out.
    base: of the policy that all arms start from.
  """
  table: Table = {}
  if base:
    base = restated(base)
    table[BASE] = {name: Interval(v, math.nan) for name, v in base.items()}
  for arm, runs in results.items():
    if not runs:
      continue
    runs = [restated(run) for run in runs]
    common = [name for name in runs[0] if all(name in run for run in runs)]
    table[arm] = {name: interval([r[name] for r in runs]) for name in common}
  return table


def accuracies(table: Table) -> dict[str, str]:
  """Metric -> split, of the accuracies of a table."""
  names = [n for row in table.values() for n in row if '/avg@' in n]
  names = [n for n in dict.fromkeys(names) if not n.endswith(('_low', '_high'))]
  return {name: name.split('/')[1] for name in names}


def markdown(table: Table) -> str:
  """One row an arm: accuracy by split, drift, and what it took.

  The mean rewards have columns where they are not the accuracies.
  """
  means = [{n: v.mean for n, v in row.items()} for row in table.values()]
  rewards = tables.mean_rewards(means)
  columns = {
    **accuracies(table),
    **{name: f'{name.split("/")[1]}: mean reward' for name in rewards},
    'eval/kl_to_base': 'KL to base per token',
    'eval/entropy': 'entropy per token',
    **COSTS,
  }
  lines = [
    f'| arm | {" | ".join(columns.values())} |',
    f'|---|{"---|" * len(columns)}',
  ]
  for arm, row in table.items():
    cells = []
    for name in columns:
      if name not in row:
        cells.append('')
      elif name in COSTS:
        cells.append(f'{row[name].mean:,.0f}')
      else:
        cells.append(str(row[name]))
    lines.append(f'| {arm} | {" | ".join(cells)} |')
  if note := tables.what_is_right(means):
    lines += ['', note]
  return '\n'.join(lines)


def write(
  folder: pathlib.Path,
  table: Table,
  about: Mapping[str, object],
  *,
  svg: bool = False,
) -> None:
  """Writes comparison.md, comparison.json and comparison.png.

  Args:
    folder: is made.
    table: of `summarize`.
    about: what else comparison.json says.
    svg: write comparison.svg too.
  """
  folder.mkdir(parents=True, exist_ok=True)
  values = {**about, 'arms': numbers(table)}
  (folder / 'comparison.json').write_text(json.dumps(values, indent=1))
  (folder / 'comparison.md').write_text(markdown(table) + '\n')
  kinds = ('png', 'svg') if svg else ('png',)
  draw(table, [folder / f'comparison.{kind}' for kind in kinds])


def numbers(table: Table) -> dict[str, object]:
  """The means, and the reaches as NAME_reach; None where there is none."""
  return {
    arm: {name: _finite(value.mean) for name, value in row.items()}
    | {f'{name}_reach': _finite(value.reach) for name, value in row.items()}
    for arm, row in table.items()
  }


def _finite(value: float) -> float | None:
  return None if math.isnan(value) else value


def draw(table: Table, paths: Sequence[pathlib.Path]) -> None:
  """One panel a split, one row an arm; the dotted line is the base policy.

  Args:
    table: of `summarize`.
    paths: the files to write; their suffix says the format.
  """
  arms = [arm for arm in table if arm != BASE]
  splits = accuracies(table)
  with matplotlib.rc_context(figures.STYLE):
    drawing = Figure(figsize=(2.3 * len(splits) + 1, 0.23 * len(arms) + 1))
    axes = drawing.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for ax, (name, split) in zip(axes, splits.items()):
      for y, arm in enumerate(arms):
        if name not in table[arm]:
          continue
        mean, reach = table[arm][name]
        ax.errorbar(
          mean,
          y,
          xerr=0 if math.isnan(reach) else reach,
          fmt='o',
          ms=4,
          color=figures.BLUE,
          capsize=2,
        )
      if name in table.get(BASE, {}):
        base = table[BASE][name].mean
        ax.axvline(base, color=figures.GREY, ls=':', lw=1)
      ax.set_title(split)
      ax.set_xlabel('accuracy')
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    for path in paths:
      drawing.savefig(path)
