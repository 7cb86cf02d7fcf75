"""Calls in guarded processes: a deadline each, and any process may be killed.

A spawned process has a pipe of its own and works on one case at a time, so the
parent always knows who works on what, and a death is the end of one pipe. Pools
whose workers take tasks from one shared pipe lose a task, or all, when a worker
is killed while it holds that pipe (Pebble 5.2.3 waits for ever), and the
standard library's pool has no deadlines.

Spawned processes import the caller's main module and what `start` needs, hence
no jax here.
"""

import collections
import contextlib
import dataclasses
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Processes that may end one after another without an answer between them, for
# each worker. The first may be the system's doing; workers that cannot start
# use up all.
ATTEMPTS = 3
# What a process may take to start and import, on a cold disk of a busy machine.
START_S = 600.0


class Expired(NamedTuple):
  """Takes the place of an answer: its process ended over the case.

  Attributes:
    exitcode: as in `multiprocessing`, negative for a signal; None: the deadline
      passed and the process was killed.
  """

  exitcode: int | None


class Workers:
  """A pool of `count` processes; close it.

  Processes start when there is work and live from one `map` to the next.
  """

  def __init__(
    self,
    count: int,
    timeout_s: float,
    start: Callable[..., Callable[[Any], Any]],
    *arguments,
  ):
    """
    Args:
      count: processes.
      timeout_s: seconds for one case; starting is charged to none.
      start: called once in each process with `arguments`, all picklable;
        returns the function that answers a case.
    """
    self._count = count
    self._timeout_s = timeout_s
    self._start = (start, *arguments)
    self._workers: list[_Worker] = []

  def close(self) -> None:
    """Kills the processes, also those at work."""
    for worker in self._workers:
      worker.end()
    self._workers.clear()

  def map(self, cases: Sequence[Any]) -> list[Any]:
    """The answer to each case, in order, or an `Expired`.

    A case whose process was killed by another's SIGKILL (a person, or the
    kernel for want of memory) is most likely not to blame: it is tried once
    more.

    Raises:
      RuntimeError: processes end before they get to work, again and again.
    """
    try:
      return self._map(cases)
    except BaseException:
      self.close()  # what is still at work would answer the next call
      raise

  def _map(self, cases: Sequence[Any]) -> list[Any]:
    answers: dict[int, Any] = {}
    waiting = collections.deque(range(len(cases)))
    killed: set[int] = set()
    fruitless = 0
    while len(answers) < len(cases):
      fruitless += self._distribute(waiting, cases, len(cases) - len(answers))
      for worker, answer in self._wait():
        position, worker.position = worker.position, None
        expired = isinstance(answer, Expired)
        if expired:
          self._drop(worker)
        if position is None:  # it has started, or failed to
          fruitless += expired
        elif (
          expired
          and answer.exitcode == -signal.SIGKILL
          and position not in killed
        ):
          killed.add(position)
          waiting.appendleft(position)
        else:
          answers[position] = answer
          fruitless = 0
      if fruitless >= ATTEMPTS * self._count:
        raise RuntimeError(
          f'{fruitless} worker processes ended one after another before any'
          ' gave an answer; what they wrote to stderr says why'
        )
    return [answers[position] for position in range(len(cases))]

  def _distribute(
    self, waiting: collections.deque[int], cases: Sequence[Any], open_cases: int
  ) -> int:
    """Gives the free workers cases; how many had died since they were free."""
    dead = 0
    for worker in list(self._workers):
      if waiting and worker.free:
        try:
          worker.give(cases[waiting[0]], waiting[0], self._timeout_s)
          waiting.popleft()
        except OSError:
          self._drop(worker)
          dead += 1
    while len(self._workers) < min(self._count, open_cases):
      self._workers.append(_start(*self._start))
    return dead

  def _wait(self) -> list[tuple['_Worker', Any]]:
    """The workers that have something to say, are dead or late; and what."""
    busy = [worker for worker in self._workers if not worker.free]
    patience = min(worker.deadline for worker in busy) - time.monotonic()
    spoke = multiprocessing.connection.wait(
      [worker.pipe for worker in busy], max(0.0, patience)
    )
    now = time.monotonic()
    return [
      (worker, worker.hear() if worker.pipe in spoke else Expired(None))
      for worker in busy
      if worker.pipe in spoke or worker.deadline <= now
    ]

  def _drop(self, worker: '_Worker') -> None:
    worker.end()
    self._workers.remove(worker)


@dataclasses.dataclass(eq=False)
class _Worker:
  """One process as its parent sees it.

  Attributes:
    position: of the case that it works on, None if none.
    deadline: of its start or its case, infinite while it is free.
  """

  process: multiprocessing.process.BaseProcess
  pipe: multiprocessing.connection.Connection
  deadline: float
  position: int | None = None

  @property
  def free(self) -> bool:
    return self.deadline == math.inf

  def give(self, case: Any, position: int, seconds: float) -> None:
    """Raises OSError if the process is dead."""
    self.pipe.send(case)
    self.position, self.deadline = position, time.monotonic() + seconds

  def hear(self) -> Any:
    """Its answer, or Expired if it died."""
    try:
      answer = self.pipe.recv()
    except (EOFError, OSError):
      self.process.join(10)  # the pipe ends a little before the process
      return Expired(self.process.exitcode)
    self.deadline = math.inf
    return answer

  def end(self) -> None:
    self.process.kill()
    self.process.join()
    self.pipe.close()


def _start(start: Callable[..., Any], *arguments) -> _Worker:
  context = multiprocessing.get_context('spawn')
  ours, theirs = context.Pipe()
  process = context.Process(
    target=_serve, args=(theirs, start, *arguments), daemon=True
  )
  process.start()
  theirs.close()  # so that the pipe ends with the process
  return _Worker(process, ours, time.monotonic() + START_S)


def _serve(
  pipe: multiprocessing.connection.Connection,
  start: Callable[..., Callable[[Any], Any]],
  *arguments,
) -> None:
  """What a process does; it ends with its parent, whose end of the pipe closes.

  A signal to the whole process group (Ctrl-C, preemption) is the parent's
  affair: it may still need the answers of its last step.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  answer = start(*arguments)
  pipe.send(None)  # ready
  with contextlib.suppress(EOFError):
    while True:
      pipe.send(answer(pipe.recv()))
