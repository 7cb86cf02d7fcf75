"""SIGTERM: the step in progress is done and saved first."""

import contextlib
import signal
import threading
from collections.abc import Generator


class Preempted(InterruptedError):
  """The run was asked to stop; the message says what is saved."""


@contextlib.contextmanager
def sigterm_event() -> Generator[threading.Event, None, None]:
  """An event that SIGTERM sets, where this thread may listen to signals."""
  event = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield event
    return
  before = signal.signal(signal.SIGTERM, lambda *_: event.set())
  try:
    yield event
  finally:
    signal.signal(signal.SIGTERM, before)
