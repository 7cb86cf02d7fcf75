"""A run directory, read: its settings, records, weights and groups."""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gft_jax.config import Config, require
from gft_jax.report import groups as report_groups
from gft_jax.run import writers
from gft_jax.run.workdir import read_config
from gft_jax.types import Numbers, Record

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
ACCURACY = r'eval/[^/]+/(avg|pass)@\d+'
MEAN_REWARD = r'eval/[^/]+/mean_reward'

# float32 carries pass@k so far.
ROUNDING = 2e-5

Series = tuple[np.ndarray, np.ndarray]
Evaluations = Mapping[str, Numbers]


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
  config: Config
  records: dict[str, list[Record]]
  weights: dict[str, tuple[np.ndarray, np.ndarray]]
  groups: dict[str, report_groups.GroupSamples]

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

  def final(self, stage: str) -> Numbers:
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


def restated(record: Record) -> Record:
  """A record in which avg@n is the accuracy, whatever version wrote it.

  Without a mean reward beside it, avg@n is the mean reward. Where that is not
  the accuracy, which pass@1 is too, both get their names. Rewards of 0 and 1
  leave nothing to do.
  """
  found = dict(record)
  for name in record:
    head, mark, n = name.partition('/avg@')
    mean, one = f'{head}/mean_reward', f'{head}/pass@1'
    if not (mark and n.isdigit() and one in record) or mean in record:
      continue
    if math.isclose(record[name], record[one], abs_tol=ROUNDING):
      continue
    for end in ('', '_low', '_high'):
      if name + end in record:
        found[mean + end] = record[name + end]
        found[name + end] = record[one + end]
  return found


def read_run(workdir: pathlib.Path) -> Run:
  """Reads a run directory; raises ConfigError if there is nothing to tell."""
  config = read_config(workdir)
  records: dict[str, list[Record]] = {}
  for record in writers.read_metrics(workdir):
    records.setdefault(record['stage'], []).append(restated(record))
  require(
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
