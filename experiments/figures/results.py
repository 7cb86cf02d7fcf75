"""What the runs of a reproduction measured."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gft_jax.report import groups as report_groups
from gft_jax.report import tables
from gft_jax.report.comparison import interval
from gft_jax.report.run import read_run

# Held-out split -> how figures call it.
SPLITS = {
  'test': 'in distribution',
  'ood_length': 'longer chains',
  'ood_operator': 'new operator',
}
KL = 'eval/kl_to_base'
ENTROPY = 'eval/entropy'


class Results:
  """The runs of a reproduction: one arm is one stage, in each seed.

  Args:
    runs: seed -> the run directories of its families; each must be finished,
      but stages after one that diverged may be missing.
    answers: seed -> arm -> the metrics of its many answers (pass@k).
  """

  def __init__(
    self,
    runs: dict[int, Sequence[pathlib.Path]],
    answers: dict[int, dict[str, dict[str, float]]],
  ):
    self.seeds = tuple(runs)
    self._records, self._weights, self._groups = {}, {}, {}
    for seed, folders in runs.items():
      for run in map(read_run, folders):
        self.tau = run.config.loss.tau
        for stage, records in run.records.items():
          self._records[seed, stage] = records
        for stage, weights in run.weights.items():
          self._weights[seed, stage] = weights
        for stage, groups in run.groups.items():
          self._groups[seed, stage] = groups
    self._answers = answers

  def final(self, arm: str, name: str) -> np.ndarray:
    """[seeds] the last value of a metric; NaN where the arm diverged."""
    found = []
    for seed in self.seeds:
      records = self._records.get((seed, arm), [])
      values = [record[name] for record in records if name in record]
      found.append(values[-1] if values else math.nan)
    return np.array(found)

  def curve(self, arm: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """[steps] and [seeds, steps] of a metric that is not in every record.

    NaN where a seed has no such step, for it diverged.
    """
    rows = [
      {
        r['step']: r[name]
        for r in self._records.get((seed, arm), [])
        if name in r
      }
      for seed in self.seeds
    ]
    steps = sorted(set().union(*rows)) or [0]
    values = [[row.get(step, math.nan) for step in steps] for row in rows]
    return np.array(steps), np.array(values)

  def accuracy(self, arm: str, split: str = 'test') -> np.ndarray:
    """[seeds] avg@n at the end of an arm."""
    return self.final(arm, self.accuracy_name(split))

  def accuracy_name(self, split: str = 'test') -> str:
    """The one metric that is called eval/SPLIT/avg@n."""
    records = self._records[self.seeds[0], 'base']
    (name,) = {
      name
      for record in records
      for name in record
      if name.startswith(f'eval/{split}/avg@')
      and not name.endswith(('_low', '_high'))
    }
    return name

  def passes(self, arm: str, split: str) -> dict[int, np.ndarray]:
    """k -> [seeds] unbiased pass@k of the many answers."""
    head = f'eval/{split}/pass@'
    names = [
      name
      for name in self._answers[self.seeds[0]][arm]
      if name.startswith(head) and name.removeprefix(head).isdigit()
    ]
    return {
      int(name.removeprefix(head)): np.array(
        [self._answers[seed][arm][name] for seed in self.seeds]
      )
      for name in names
    }

  def share(self, arm: str, name: str) -> np.ndarray:
    """[seeds] a share of the many answers; NaN of an arm that gave none."""
    return np.array(
      [
        self._answers[seed].get(arm, {}).get(name, math.nan)
        for seed in self.seeds
      ]
    )

  def weights(self, arm: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per seed, 1/p and C/p of the tokens of held-out experts."""
    return [self._weights[seed, arm] for seed in self.seeds]

  def groups(
    self, arms: dict[str, str]
  ) -> dict[str, report_groups.GroupSamples]:
    """Title -> groups of an arm, of the first seed that has them.

    Args:
      arms: arm -> its title.
    """
    return {
      arms[arm]: self._groups[seed, arm]
      for seed in reversed(self.seeds)
      for arm in arms
      if (seed, arm) in self._groups
    }


def accuracy_table(
  results: Results,
  arms: dict[str, str],
  splits: Sequence[str] = tuple(SPLITS),
  more: dict[str, Callable[[str], np.ndarray]] | None = None,
  paper: Mapping[str, Mapping[str, str]] | None = None,
) -> tables.Table:
  """Arms in rows, splits in columns, then further numbers, then the paper's.

  Args:
    arms: arm -> its name in the paper.
    splits: columns, of SPLITS.
    more: column -> (arm -> [seeds]).
    paper: column -> arm -> number.
  """
  more, paper = more or {}, paper or {}
  head = ['', *(SPLITS[split] for split in splits), *more]
  head += [f'paper: {column}' for column in paper]
  body = []
  for arm, label in arms.items():
    cells = [str(interval(results.accuracy(arm, s))) for s in splits]
    cells += [str(interval(measure(arm))) for measure in more.values()]
    cells += [column.get(arm, '') for column in paper.values()]
    body.append([label, *cells])
  return tables.Table(head, body, [])
