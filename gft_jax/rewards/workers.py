"""Calls in guarded processes: a deadline each, and any process may be killed.

A spawned process has a pipe of its own and works on one case at a time, so the
parent always knows who works on what, and a death is the end of one pipe. Pools
whose workers take tasks from one shared pipe lose a task, or all, when a worker
is killed while it holds that pipe (Pebble 5.2.3 waits for ever), and the
standard library's pool has no deadlines.

What a process runs need not behave: it may fork, leave threads and processes
behind, or close its files. Cases and answers travel as JSON, so nothing that a
process says is executed by its parent.

Spawned processes import the caller's main module and what `start` needs, hence
no jax here.
"""

import collections
import contextlib
import dataclasses
import json
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import multiprocessing.util
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

# Processes that may end one after another without an answer between them, for
# each worker. The first may be the system's doing; workers that cannot start
# use up all.
ATTEMPTS = 3
# What a process may take to start and import, on a cold disk of a busy machine.
START_S = 600.0

# Signals from outside, by a person, a scheduler, or the kernel for want of memory:
# most likely not the case's doing.
_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
# Has it ended? Asked without collecting it.
_PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Ended(NamedTuple):
  """Takes the place of an answer: its process ended over the case.

  Attributes:
    exitcode: as in `multiprocessing`, negative for a signal; None: it had to be
      killed, at the deadline or because it no longer listened.
  """

  exitcode: int | None


class Workers:
  """A pool of `count` processes.

  They start when there is work and live until the pool is closed, collected, or
  the program ends.
  """

  def __init__(
    self,
    count: int,
    timeout_s: float,
    start: Callable[..., Callable[..., object]],
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
    # Else multiprocessing would wait, at exit, for processes that wait for it.
    multiprocessing.util.Finalize(self, _end, (self._workers,), exitpriority=10)

  def close(self) -> None:
    """Kills the processes, also those at work."""
    _end(self._workers)

  def map(self, cases: Sequence[object]) -> list[object]:
    """The answer to each case, in order, or how its process `Ended`.

    A case whose process was killed from outside is tried once more.

    Args:
      cases: what JSON can say; the answers come back so, too.

    Raises:
      RuntimeError: processes end before they get to work, again and again.
    """
    try:
      return self._map(cases)
    except BaseException:
      self.close()  # what is still at work would answer the next call
      raise

  def _map(self, cases: Sequence[object]) -> list[object]:
    answers: dict[int, object] = {}
    waiting = collections.deque(range(len(cases)))
    tried: set[int] = set()
    fruitless = 0
    while len(answers) < len(cases):
      fruitless += self._distribute(waiting, cases, len(cases) - len(answers))
      for worker, answer in self._wait():
        position, worker.position = worker.position, None
        ended = isinstance(answer, Ended)
        if ended:
          self._drop(worker)
        if position is None:  # it has started, or failed to
          fruitless += ended
        elif (
          ended and answer.exitcode in _FROM_OUTSIDE and position not in tried
        ):
          tried.add(position)
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
    self,
    waiting: collections.deque[int],
    cases: Sequence[object],
    unanswered: int,
  ) -> int:
    """Gives the free workers cases; how many had died since they were free."""
    dead = 0
    for worker in list(self._workers):
      if waiting and worker.free:
        if worker.process.is_alive():
          position = waiting.popleft()
          worker.give(cases[position], position, self._timeout_s)
        else:
          self._drop(worker)
          dead += 1
    while len(self._workers) < min(self._count, unanswered):
      self._workers.append(_spawn(*self._start))
    return dead

  def _wait(self) -> list[tuple['_Worker', object]]:
    """The workers that have something to say, are dead or late; and what."""
    busy = [worker for worker in self._workers if not worker.free]
    patience = min(worker.deadline for worker in busy) - time.monotonic()
    spoke = multiprocessing.connection.wait(
      [worker.pipe for worker in busy], max(0.0, patience)
    )
    now = time.monotonic()
    return [
      (worker, worker.hear() if worker.pipe in spoke else Ended(None))
      for worker in busy
      if worker.pipe in spoke or worker.deadline <= now
    ]

  def _drop(self, worker: '_Worker') -> None:
    self._workers.remove(worker)
    worker.end()


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

  def give(self, case: object, position: int, seconds: float) -> None:
    self.position, self.deadline = position, time.monotonic() + seconds
    # If it died just now, or of the size of this case, `hear` says so.
    with contextlib.suppress(OSError):
      self.pipe.send_bytes(json.dumps(case).encode())

  def hear(self) -> object:
    """Its answer, or how it ended."""
    try:
      answer = json.loads(self.pipe.recv_bytes())
    except (EOFError, OSError, ValueError):
      # The pipe ends a little before the process. Not `join`: what the process
      # has left behind may hold the file by which that sees the end.
      until = min(self.deadline, time.monotonic() + 10)
      while (code := self._exitcode()) is None and time.monotonic() < until:
        time.sleep(0.005)
      return Ended(code)
    self.deadline = math.inf
    return answer

  @property
  def _pid(self) -> int:
    assert self.process.pid is not None  # It has been started.
    return self.process.pid

  def _exitcode(self) -> int | None:
    """As `process.exitcode`, but a dead process keeps its number until `end`."""
    try:
      found = os.waitid(os.P_PID, self._pid, _PEEK)
    except ChildProcessError:  # It was collected, by whatever else starts one.
      return self.process.exitcode
    if found is None:
      return None
    exited = found.si_code == os.CLD_EXITED
    return found.si_status if exited else -found.si_status

  def end(self) -> None:
    """Kills it, and what it has started."""
    with contextlib.suppress(
      ChildProcessError, ProcessLookupError, PermissionError
    ):
      # It raises where the process was collected: its number may be another's.
      os.waitid(os.P_PID, self._pid, _PEEK)
      os.killpg(self._pid, signal.SIGKILL)
    self.process.kill()
    self.process.join()
    self.pipe.close()


def _end(workers: list[_Worker]) -> None:
  # None of them is used again, even if this is interrupted.
  ending, workers[:] = list(workers), []
  for worker in ending:
    worker.end()


def _spawn(start: Callable[..., Callable[..., object]], *arguments) -> _Worker:
  context = multiprocessing.get_context('spawn')
  ours, theirs = context.Pipe()
  process = context.Process(target=_serve, args=(theirs, start, *arguments))
  process.start()
  theirs.close()  # so that the pipe ends with the process
  return _Worker(process, ours, time.monotonic() + START_S)


def _serve(
  pipe: multiprocessing.connection.Connection,
  start: Callable[..., Callable[..., object]],
  *arguments,
) -> None:
  """What a process does; it ends with its parent, whose end of the pipe closes."""
  # A group of its own: what it starts can be killed with it, and Ctrl-C is the
  # parent's affair, which may need the answers of its last step.
  os.setpgid(0, 0)
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  # The pipe is this process's alone; a forked child must not answer for it.
  os.set_inheritable(pipe.fileno(), False)
  os.register_at_fork(after_in_child=pipe.close)
  answer = start(*arguments)
  with contextlib.suppress(EOFError, ConnectionError):
    pipe.send_bytes(b'null')  # ready
    while True:
      case = json.loads(pipe.recv_bytes())
      pipe.send_bytes(json.dumps(answer(case)).encode())
  os._exit(0)  # whatever threads and children are left
