"""A training run that says which phase it is in, for one who kills it.

  python tests/marked_run.py CONFIG WORKDIR MARK

CONFIG is a config.json. The file MARK holds the step and the phase, and keeps
them when the process is killed. A run that ends prints the median seconds of
each phase as JSON.
"""

import contextlib
import functools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

PHASES = ('sampling', 'grading', 'updating', 'saving', 'evaluating')
STARTING, BETWEEN = 'starting', 'between'


class Mark:
  """The present phase in a file; what is inside a phase belongs to it.

  A checkpoint is written beside the other phases, and hides them.
  """

  def __init__(self, path: str):
    self._file = os.open(path, os.O_WRONLY | os.O_CREAT)
    self._saves = 0
    self.step = 0
    self.seconds = {phase: [] for phase in PHASES}
    self._write(STARTING)

  def _write(self, phase: str) -> None:
    self._phase = phase
    shown = 'saving' if self._saves else phase
    os.pwrite(self._file, f'{self.step:6} {shown:10}'.encode(), 0)

  def saving(self, begun: int) -> None:
    """One more save goes on, or one less."""
    self._saves += begun
    self._write(self._phase)
    if begun > 0:
      self._save_start = time.perf_counter()
    else:
      self.seconds['saving'].append(time.perf_counter() - self._save_start)

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    if self._phase in PHASES:
      yield
      return
    self.step += name == 'sampling'
    start = time.perf_counter()
    self._write(name)
    yield
    self._write(BETWEEN)
    self.seconds[name].append(time.perf_counter() - start)

  def wrap(self, owner: Any, name: str, phase: str) -> None:
    """Runs `owner.name` in a phase, to the end of what it dispatches."""
    import jax

    function = getattr(owner, name)

    @functools.wraps(function)
    def marked(*arguments, **keywords):
      with self.phase(phase):
        return jax.block_until_ready(function(*arguments, **keywords))

    setattr(owner, name, marked)


def read(path: pathlib.Path) -> tuple[int, str]:
  """Step and phase of a mark."""
  step, phase = path.read_text().split()
  return int(step), phase


def main(config: str, workdir: str, path: str) -> None:
  from gft_jax import loop
  from gft_jax.config import Config, from_dict
  from gft_jax.engine import Engine
  from gft_jax.evaluation.held_out import HeldOutEvaluation
  from gft_jax.run import checkpoint

  mark = Mark(path)
  restore: Callable[..., checkpoint.Restored | None] = checkpoint.restore

  def restored(*arguments):
    found = restore(*arguments)
    mark.step = found.step if found else 0
    return found

  begin, finish = checkpoint.Saver.save, checkpoint._finish

  def save(*arguments, **keywords):
    mark.saving(1)
    begin(*arguments, **keywords)

  def finished(*arguments):
    finish(*arguments)
    mark.saving(-1)

  checkpoint.restore = restored
  checkpoint.Saver.save, checkpoint._finish = save, finished
  mark.wrap(Engine, 'sample', 'sampling')
  mark.wrap(Engine, 'score', 'grading')
  mark.wrap(Engine, 'update', 'updating')
  mark.wrap(HeldOutEvaluation, 'measure', 'evaluating')
  settings = from_dict(Config, json.loads(pathlib.Path(config).read_text()))
  loop.train(settings, workdir)
  medians = {k: statistics.median(v) for k, v in mark.seconds.items()}
  sys.stdout.write(json.dumps(medians))


if __name__ == '__main__':
  main(*sys.argv[1:])
