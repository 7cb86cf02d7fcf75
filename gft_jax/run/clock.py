"""Where the time of a run goes: seconds by phase, also across interruptions.

Under time/ are seconds, which add up: those of the phases of a step (STEP) and
of 'evaluate', without what the compiler took, 'compile'; and on the next record
what belongs to no step, 'start' (of a process or a stage), 'save', and after an
interruption 'lost' and 'down', see `Past`. Beside them stand 'wall', seconds
since the run started first, and on the first record of a process 'begun', the
Unix time of that start. Under memory/, 'programs' counts those that were
compiled since the last record, and 'programs_cached' those of them that the
persistent cache had.
"""

import contextlib
import json
import pathlib
import resource
import time
from collections.abc import Generator
from typing import NamedTuple

import jax

from gft_jax.run import compiler
from gft_jax.types import Numbers

# The phases of a step, and where a record has the fields of compiler.Work.
STEP = ('data', 'sample', 'reward', 'update')
COMPILED = ('time/compile', 'memory/programs', 'memory/programs_cached')


class Clock:
  """Seconds by phase, and what was compiled meanwhile."""

  def __init__(self):
    self._record: Numbers = {}

  @contextlib.contextmanager
  def phase(self, name: str) -> Generator[None, None, None]:
    """Charges its seconds to `name`, but those of the compiler to 'compile'.

    A profile shows it under its name.
    """
    start, before = time.perf_counter(), compiler.work()
    with jax.profiler.TraceAnnotation(name):
      yield
    spent, made = time.perf_counter() - start, compiler.work() - before
    self.add(f'time/{name}', spent - made.seconds)
    for field, value in zip(COMPILED, made):
      if value:
        self.add(field, value)

  def add(self, name: str, value: float) -> None:
    self._record[name] = self._record.get(name, 0) + value

  def record(self) -> Numbers:
    return dict(self._record)

  def added_to(self, record: Numbers) -> Numbers:
    """The record, and where both have a number, the sum."""
    sums = {k: record.get(k, 0) + value for k, value in self._record.items()}
    return record | sums


def memory() -> Numbers:
  """The most that this process has held, and the fullest of its devices."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  record = {'memory/host_peak_mb': peak / 1024}
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [s['peak_bytes_in_use'] for s in stats if 'peak_bytes_in_use' in s]
  if peaks:  # CPUs do not say.
    record['memory/device_peak_mb'] = max(peaks) / 2**20
  return record


class Past(NamedTuple):
  """What a process finds of the time before it.

  Attributes:
    begun: Unix time at which the run started first.
    lost: seconds of work whose records are cut away: it is done again.
    down: seconds between the last record of a process and the next call of
      `gft_jax.train`, in which Python starts and imports too.
  """

  begun: float
  lost: float = 0.0
  down: float = 0.0


def read_past(workdir: str | pathlib.Path, position: int, now: float) -> Past:
  """Reads it from metrics.jsonl, which must not be cut back yet.

  Of a process that died before its first record nothing is known; its time is
  down.

  Args:
    workdir: of the run.
    position: bytes of metrics.jsonl that remain valid.
    now: Unix time at which this process started.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  text = path.read_bytes() if path.exists() else b''
  records = []
  for line in text.split(b'\n')[:-1]:
    try:
      records.append(json.loads(line))
    except ValueError:  # A power cut leaves bytes that nobody wrote.
      break
  if not records or 'time/begun' not in records[0]:
    return Past(now)
  begun, alive = records[0]['time/begun'], records[-1]['time/wall']
  kept = min(text[:position].count(b'\n'), len(records))
  valid = records[kept - 1]['time/wall'] if kept else 0.0
  earlier = sum(record.get('time/down', 0) for record in records[kept:])
  down = now - begun - alive
  return Past(begun, alive - valid - earlier, down + earlier)
