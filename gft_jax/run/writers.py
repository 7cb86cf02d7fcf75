"""Consumers of records at the edge of the loop.

A record is flat: 'stage', 'step', and 'group/name' -> finite number, with the
groups train, eval, time and memory (see `clock`). metrics.jsonl is always
written and is the truth of a run; the others are conveniences.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

import tqdm

from gft_jax.config import ConfigError, LogConfig, require
from gft_jax.types import Numbers, Record

if TYPE_CHECKING:
  import tensorboardX


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
    require(
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
    self._events: tensorboardX.SummaryWriter | None = None

  def begin(self, stage: str, steps: int, step: int, position: int) -> None:
    import tensorboardX  # and torch with it, where that is installed: seconds

    self.close()
    self._events = tensorboardX.SummaryWriter(
      str(self._directory / stage), purge_step=step + 1
    )

  def write(self, record: Record) -> None:
    assert self._events, 'no stage has begun'
    for name, value in _metrics(record).items():
      self._events.add_scalar(name, value, record['step'])

  def close(self) -> None:
    if self._events is not None:
      self._events.close()
      self._events = None


class WeightsAndBiases(Writer):
  """One W&B run per workdir; a resumed run goes on in the same one."""

  def __init__(self, workdir: pathlib.Path):
    """Raises ConfigError where W&B begins no run."""
    workdir = workdir.resolve()
    self._broken = False
    with _wandb_errors():
      import wandb

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
    named = {f'{record["stage"]}/{k}': v for k, v in values.items()}
    self._try(lambda: self._run.log(named))

  def close(self) -> None:
    self._try(lambda: self._run.finish())

  def _try(self, call: Callable[[], object]) -> None:
    """What W&B refuses is said once: metrics.jsonl has every record."""
    try:
      if not self._broken:
        call()
    except Exception as error:
      self._broken = True
      logging.warning('W&B takes no more records: %s', error)


@contextlib.contextmanager
def _wandb_errors() -> Generator[None, None, None]:
  """Whatever W&B raises becomes a ConfigError of one line."""
  try:
    yield
  except Exception as error:
    if isinstance(error, ModuleNotFoundError) and error.name == 'wandb':
      raise ConfigError(
        'log.wandb=true needs the package wandb: pip install wandb'
      ) from error
    reason = ' '.join(str(error).split()) or type(error).__name__
    what = 'cannot be imported' if isinstance(error, ImportError) else 'refuses'
    raise ConfigError(
      f'log.wandb=true: wandb {what} ({reason[:200]}); `wandb login`, or'
      ' WANDB_MODE=offline, or log.wandb=false'
    ) from error


def check_writers(config: LogConfig) -> None:
  """Tries what may be refused, before a run writes anything.

  Raises:
    ConfigError: W&B is asked for, and is not installed or has no key.
  """
  if config.wandb:
    with _wandb_errors():
      import wandb

      offline = os.environ.get('WANDB_MODE') in (
        'offline',
        'disabled',
        'dryrun',
      )
      if not wandb.login() and not offline:
        raise PermissionError('not logged in')


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
    assert self._bar is not None, 'no stage has begun'
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


def make_writer(workdir: str | pathlib.Path, config: LogConfig) -> Writer:
  """Opens metrics.jsonl in an existing `workdir`, and what `config` asks for.

  Raises:
    ConfigError: W&B is asked for, and begins no run; see `check_writers`.
  """
  workdir = pathlib.Path(workdir)
  wandb = [WeightsAndBiases(workdir)] if config.wandb else []
  writers: list[Writer] = [MetricsFile(workdir)]
  if config.tensorboard:
    writers.append(TensorBoard(workdir))
  if config.progress:
    writers.append(ProgressBar())
  return Tee(writers + wandb)


def read_metrics(workdir: str | pathlib.Path) -> list[Record]:
  """The records of metrics.jsonl in order, without a line cut by a kill.

  Raises:
    ConfigError: there is no such file.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  require(path.is_file(), f'{path} does not exist: not a run')
  lines = path.read_text().split('\n')
  return [json.loads(line) for line in lines[:-1]]


def _metrics(record: Record) -> Numbers:
  return {k: v for k, v in record.items() if k not in ('stage', 'step')}
