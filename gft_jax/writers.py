"""Consumers of records at the edge of the loop.

A record is flat: 'stage', 'step', and 'group/name' -> finite number, with the
groups train, eval, time and memory. metrics.jsonl is always written and is the
truth of a run; the others are conveniences.

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
import hashlib
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import tqdm

from gft_jax import compiler
from gft_jax import config as config_lib

Record = dict[str, Any]

# The phases of a step, and where a record has the fields of compiler.Work.
STEP = ('data', 'sample', 'reward', 'update')
COMPILED = ('time/compile', 'memory/programs', 'memory/programs_cached')


class Writer:
  """The Null writer, and what the others override."""

  def begin(self, stage: str, steps: int, step: int, position: int) -> None:
    """A stage of `steps` steps starts, or goes on after `step`.

    Args:
      stage: its name.
      steps: how many it has in all.
      step: how many are done; whatever was written of later ones is void.
      position: bytes of metrics.jsonl that remain valid, from `position()`.
    """

  def write(self, record: Record) -> None:
    """Takes one record."""

  def position(self) -> int:
    """Bytes of metrics.jsonl that are safe on disk; 0 where there is none."""
    return 0

  def close(self) -> None:
    """Finishes what is open."""


class MetricsFile(Writer):
  """One JSON object per line in `workdir`/metrics.jsonl.

  Floats are written by repr, so what is read back is equal bit for bit.
  """

  def __init__(self, workdir: pathlib.Path):
    self._path = workdir / 'metrics.jsonl'
    self._file = self._path.open('ab')

  def begin(self, stage: str, steps: int, step: int, position: int) -> None:
    """Cuts the file back to `position`.

    Raises:
      ConfigError: the file is shorter than that.
    """
    size = self._file.seek(0, os.SEEK_END)
    config_lib.require(
      size >= position,
      f'{self._path} has {size} bytes, but the checkpoint vouches for'
      f' {position}; restore the file or use a new --workdir',
    )
    self._file.truncate(position)
    self._file.seek(position)

  def write(self, record: Record) -> None:
    """Raises ValueError at NaN and infinity, which JSON has no words for."""
    self._file.write(json.dumps(record, allow_nan=False).encode() + b'\n')
    self._file.flush()

  def position(self) -> int:
    os.fsync(self._file.fileno())
    return self._file.tell()

  def close(self) -> None:
    self._file.close()


class TensorBoard(Writer):
  """Event files under `workdir`/tensorboard, one folder a stage."""

  def __init__(self, workdir: pathlib.Path):
    self._directory = workdir / 'tensorboard'
    self._events: Any = None

  def begin(self, stage: str, steps: int, step: int, position: int) -> None:
    import tensorboardX  # and torch with it, where that is installed: seconds

    self.close()
    self._events = tensorboardX.SummaryWriter(
      str(self._directory / stage), purge_step=step + 1
    )

  def write(self, record: Record) -> None:
    for name, value in _metrics(record).items():
      self._events.add_scalar(name, value, record['step'])

  def close(self) -> None:
    if self._events is not None:
      self._events.close()
      self._events = None


class WeightsAndBiases(Writer):
  """One W&B run per workdir; a resumed run goes on in the same one."""

  def __init__(self, workdir: pathlib.Path):
    """Raises ConfigError if wandb is not installed."""
    try:
      import wandb
    except ImportError as error:
      raise config_lib.ConfigError(
        'log.wandb=True needs the package wandb: pip install wandb'
      ) from error
    workdir = workdir.resolve()
    self._run = wandb.init(
      project='gft_jax',
      name=workdir.name,
      id=hashlib.sha256(str(workdir).encode()).hexdigest()[:16],
      resume='allow',
      dir=str(workdir),
    )

  def begin(self, stage: str, steps: int, step: int, position: int) -> None:
    self._run.define_metric(f'{stage}/*', step_metric=f'{stage}/step')

  def write(self, record: Record) -> None:
    values = {'step': record['step']} | _metrics(record)
    self._run.log({f'{record["stage"]}/{k}': v for k, v in values.items()})

  def close(self) -> None:
    self._run.finish()


class ProgressBar(Writer):
  """One bar per stage on stderr, with the numbers that a person watches."""

  SHOWN = ('train/loss', 'train/reward', 'train/entropy')

  def __init__(self):
    self._bar: tqdm.tqdm | None = None

  def begin(self, stage: str, steps: int, step: int, position: int) -> None:
    self.close()
    self._bar = tqdm.tqdm(
      total=steps,
      initial=step,
      desc=stage,
      unit='step',
      file=sys.stderr,
      # In a log file each refresh is a new line.
      mininterval=0.2 if sys.stderr.isatty() else 30,
    )

  def write(self, record: Record) -> None:
    shown = {
      name.partition('/')[2]: f'{record[name]:.3g}'
      for name in self.SHOWN
      if name in record
    }
    if shown:
      self._bar.set_postfix(shown, refresh=False)
    self._bar.update(record['step'] - self._bar.n)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None


class Tee(Writer):
  """Hands everything to each of several writers; the first has a position."""

  def __init__(self, writers: Sequence[Writer]):
    self._writers = tuple(writers)

  def begin(self, stage: str, steps: int, step: int, position: int) -> None:
    for writer in self._writers:
      writer.begin(stage, steps, step, position)

  def write(self, record: Record) -> None:
    for writer in self._writers:
      writer.write(record)

  def position(self) -> int:
    return self._writers[0].position()

  def close(self) -> None:
    for writer in self._writers:
      writer.close()


def make_writer(
  workdir: str | pathlib.Path, config: config_lib.LogConfig
) -> Writer:
  """Opens metrics.jsonl in an existing `workdir`, and what `config` asks for.

  Raises:
    ConfigError: W&B is asked for and not installed; nothing is written then.
  """
  workdir = pathlib.Path(workdir)
  wandb = [WeightsAndBiases(workdir)] if config.wandb else []
  writers = [MetricsFile(workdir)]
  if config.tensorboard:
    writers.append(TensorBoard(workdir))
  if config.progress:
    writers.append(ProgressBar())
  return Tee(writers + wandb)


class Clock:
  """Seconds by phase, and what was compiled meanwhile."""

  def __init__(self):
    self._record: Record = {}

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
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

  def record(self) -> Record:
    return dict(self._record)

  def added_to(self, record: Record) -> Record:
    """The record, and where both have a number, the sum."""
    sums = {k: record.get(k, 0) + value for k, value in self._record.items()}
    return record | sums


def memory() -> Record:
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
      `train.train`, in which Python starts and imports too.
  """

  begun: float
  lost: float = 0.0
  down: float = 0.0


def past(workdir: str | pathlib.Path, position: int, now: float) -> Past:
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


def read_metrics(workdir: str | pathlib.Path) -> list[Record]:
  """The records of metrics.jsonl in order, without a line cut by a kill.

  Raises:
    ConfigError: there is no such file.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  config_lib.require(path.is_file(), f'{path} does not exist: not a run')
  lines = path.read_text().split('\n')
  return [json.loads(line) for line in lines[:-1]]


def _metrics(record: Record) -> Record:
  return {k: v for k, v in record.items() if k not in ('stage', 'step')}
