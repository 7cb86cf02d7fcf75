"""SIGTERM and Ctrl-C: the step in progress is done and saved first."""

import contextlib
import os
import signal
import threading
from collections.abc import Generator
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT)
HINT = (
  'Ctrl-C: this step is finished and saved first; press it again to stop now'
)


class Preempted(InterruptedError):
  """The run was asked to stop; the message says by what, and what is saved.

  Attributes:
    number: of the signal.
  """

  def __init__(self, number: int, message: str):
    by = 'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name
    super().__init__(f'{by}: {message}')
    self.number = number


class StopRequest:
  """Whether a signal has asked this process to stop.

  Attributes:
    number: of the first that did; 0 until then.
  """

  def __init__(self) -> None:
    self.number = 0


@contextlib.contextmanager
def stop_requests() -> Generator[StopRequest, None, None]:
  """What SIGTERM and Ctrl-C ask for, where this thread may listen to signals.

  A second Ctrl-C is left to the handler that stood before. A signal that the
  process ignores, as under nohup, stays ignored.
  """
  request = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return
  before = {number: signal.getsignal(number) for number in STOPS}

  def take(number: int, frame: FrameType | None) -> None:
    handler = before[signal.Signals(number)]
    if number == signal.SIGINT:
      if request.number == number and callable(handler):
        handler(number, frame)
      say(HINT)
    request.number = request.number or number

  # None: a handler that Python does not know and could not put back.
  taken = [n for n in STOPS if before[n] not in (None, signal.SIG_IGN)]
  for number in taken:
    signal.signal(number, take)
  try:
    yield request
  finally:
    for number in taken:
      signal.signal(number, before[number])


def say(line: str) -> None:
  """Writes a line to stderr, also from a handler that interrupts a print."""
  os.write(2, f'{line}\n'.encode())
