"""What a reproduction measured, and how one judges a claim by it."""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from compare import interval
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gft_jax.report import figures, tables
from gft_jax.report import groups as report_groups
from gft_jax.report.run import read_run

# Held-out split -> how figures call it.
SPLITS = {
  'test': 'in distribution',
  'ood_length': 'longer chains',
  'ood_operator': 'new operator',
}
KL = 'eval/kl_to_base'
ENTROPY = 'eval/entropy'

COLOURS = {
  'sft': figures.VERMILLION,
  'grpo': figures.BLUE,
  'gft': figures.GREEN,
  'gft_no_dcr': figures.PURPLE,
  'gft_no_gal': figures.ORANGE,
}
# What stands at the head of a page.
TASK = (
  'A small decoder adds and subtracts: to `7+8-3+5:` it answers with a derivation'
  ' and `#17`. In distribution: chains of 3 to 5 numbers, as in training; longer'
  ' chains: 6 or 7; new operator: 3 to 5, with one product. It learned all of'
  ' them a little in pre-training (the base policy), in several styles. The'
  ' expert writes `p20n3#17`, rare there. GAL, group advantage learning, is the'
  ' score relative to the group; without it a method imitates: the expert alone, on'
  ' ten times the prompts, or expert and teachers, SFT(mix). DCR, dynamic coefficient rectification, bounds'
  ' the weight of unlikely tokens by 1/τ. A → B trains by A, then by B.'
)
READING = (
  '±, error bars and bands are 95 % intervals of the mean over seeds (Student’s'
  ' t); they may reach beyond 0 or 1. A verdict stands on the paired difference'
  ' over seeds: a claim of the paper reproduces, or does not, where that'
  ' interval leaves out 0; a claim of ours holds, or does not. Seeds differ in'
  ' initial weights, order and sampling; the task’s data and its held-out'
  ' prompts are the same, so the intervals do not cover other prompts. Of some'
  ' dozens of claims one or two are decided by chance.'
)


class Claim(NamedTuple):
  """A sentence, and by how much it holds here.

  Attributes:
    text: the sentence.
    margins: per seed, above 0 where it holds; paired, for the arms of a seed
      share base policy, task data and held-out prompts.
    paper: whether the paper says so.
  """

  text: str
  margins: Sequence[float]
  paper: bool = True

  def verdict(self) -> str:
    """Whether the 95 % interval of the margin leaves out 0, and on what side."""
    mean, reach = interval(self.margins)
    if math.isnan(mean):
      return 'diverged'
    if len(self.margins) == 1:
      return 'cannot be seen (one seed)'
    if abs(mean) <= reach:
      return 'cannot be seen at this scale'
    if self.paper:
      return 'reproduces' if mean > 0 else 'does not reproduce'
    return 'holds' if mean > 0 else 'does not hold'

  def sentence(self) -> str:
    """The claim, its verdict and the interval of its margin."""
    mean, reach = interval(self.margins)
    known = f'{mean:+.3f}' + ('' if math.isnan(reach) else f' ± {reach:.3f}')
    return f'{self.text}: **{self.verdict()}** ({known})'


class Item(NamedTuple):
  """A figure or table of the paper, from our runs.

  Attributes:
    title: what the paper calls it, and what it shows.
    paper: what the paper found, in numbers where it prints some.
    table: our numbers.
    claims: what is judged.
    figure: None for a table.
    note: what else one must know.
  """

  title: str
  paper: str
  table: tables.Table
  claims: Sequence[Claim]
  figure: Figure | None = None
  note: str = ''


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
  paper: dict[str, dict[str, str]] | None = None,
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


def points(
  ax: Axes,
  places: Sequence[float],
  values: Sequence[np.ndarray],
  *,
  horizontal: bool = False,
  **style,
) -> None:
  """Means over seeds with their intervals, upright or lying."""
  means, reaches = zip(*map(interval, values))
  style = {'fmt': 'o', 'ms': 4, 'capsize': 2, 'lw': 1.2} | style
  if horizontal:
    ax.errorbar(means, places, xerr=reaches, **style)
  else:
    ax.errorbar(places, means, yerr=reaches, **style)


def band(ax: Axes, steps: np.ndarray, values: np.ndarray, **style) -> None:
  """The mean curve over seeds with its interval."""
  means, reaches = map(np.array, zip(*map(interval, values.T)))
  (line,) = ax.plot(steps, means, **style)
  ends = means - reaches, means + reaches
  ax.fill_between(steps, *ends, color=line.get_color(), alpha=0.15, lw=0)


def legend(figure: Figure, ax: Axes, columns: int = 5) -> None:
  """One legend above all panels."""
  handles, labels = ax.get_legend_handles_labels()
  figure.legend(
    handles,
    labels,
    loc='outside upper center',
    ncols=min(columns, len(labels)),
  )
