"""SIGTERM sets an event, in the main thread, as long as somebody looks."""

import signal
import threading

import pytest

from gft_jax.run.signals import sigterm_event


@pytest.fixture
def before():
  """What the handler that stood before has got; a signal ends no test."""
  got = []
  handler = lambda *_: got.append('SIGTERM')  # noqa: E731
  found = signal.signal(signal.SIGTERM, handler)
  yield got
  signal.signal(signal.SIGTERM, found)


def test_sigterm_sets_the_event_and_nothing_else(before):
  with sigterm_event() as event:
    assert not event.is_set()
    signal.raise_signal(signal.SIGTERM)
    assert event.is_set()
    signal.raise_signal(signal.SIGTERM)  # A second one does no harm.
  assert before == []


def test_the_handler_before_is_put_back_also_after_an_error(before):
  handler = signal.getsignal(signal.SIGTERM)
  with sigterm_event() as event:
    assert signal.getsignal(signal.SIGTERM) is not handler
  assert signal.getsignal(signal.SIGTERM) is handler
  with pytest.raises(KeyError), sigterm_event():
    raise KeyError
  signal.raise_signal(signal.SIGTERM)
  assert before == ['SIGTERM'] and not event.is_set()


def test_another_thread_gets_an_event_and_no_handler_is_touched(before):
  handler, entered, leave = (
    signal.getsignal(signal.SIGTERM),
    threading.Event(),
    threading.Event(),
  )
  events = []

  def run():
    with sigterm_event() as event:
      events.append(event)
      entered.set()
      leave.wait(60)

  thread = threading.Thread(target=run)
  thread.start()
  try:
    assert entered.wait(60)
    assert signal.getsignal(signal.SIGTERM) is handler
    signal.raise_signal(signal.SIGTERM)
  finally:
    leave.set()
    thread.join(60)
  assert before == ['SIGTERM'] and not events[0].is_set()
  assert signal.getsignal(signal.SIGTERM) is handler
