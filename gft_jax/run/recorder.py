"""Writes the records of a run; their seconds add up to its wall time."""

import pathlib
import time
from collections.abc import Callable

from gft_jax.run.clock import Clock, Past, read_past
from gft_jax.run.writers import Writer
from gft_jax.types import Record


class Recorder:
  """Writes each record with the times that belong to no step.

  Attributes:
    valid_bytes: how much of metrics.jsonl the last checkpoint vouches for.
    unreported_times: what belongs to no step; the next record takes it.
  """

  def __init__(self, writer: Writer, workdir: pathlib.Path, started: float):
    """`started` is the Unix time at which this process began the run."""
    self.valid_bytes = 0
    self.unreported_times = Clock()
    self._writer = writer
    self._workdir = workdir
    # The Unix time up to which every second is accounted for.
    self._accounted_until = started
    self._earlier_processes: Past | None = None
    self._deferred: Callable[[], Record] | None = None

  def begin_stage(self, stage: str, steps: int, done: int) -> None:
    """A stage of `steps` steps begins, or goes on after `done` of them."""
    times = self.unreported_times
    if self._earlier_processes is None:
      self._earlier_processes = read_past(
        self._workdir, self.valid_bytes, self._accounted_until
      )
      for name, seconds in self._earlier_processes._asdict().items():
        if seconds:
          times.add(f'time/{name}', seconds)
    times.add('time/start', time.time() - self._accounted_until)
    self._writer.begin(stage, steps, done, self.valid_bytes)

  def end_stage(self) -> None:
    """The next stage's start is counted from here."""
    self._accounted_until = time.time()

  def defer(self, read: Callable[[], Record]) -> None:
    """Takes a record that is not ready yet, and writes the one before."""
    self.flush()
    self._deferred = read

  def flush(self) -> None:
    """Writes the deferred record, if there is one; waits for its numbers."""
    read, self._deferred = self._deferred, None
    if read:
      self.write(read())

  def write(self, record: Record) -> None:
    """Writes a record, with when that was."""
    if self._earlier_processes is None:
      raise RuntimeError('no stage has begun')
    record = self.unreported_times.added_to(record)
    self.unreported_times = Clock()
    begun = self._earlier_processes.begun
    self._writer.write(record | {'time/wall': time.time() - begun})

  def vouch(self) -> int:
    """Bytes of metrics.jsonl that are safe on disk, for a checkpoint to keep."""
    self.valid_bytes = self._writer.position()
    return self.valid_bytes
