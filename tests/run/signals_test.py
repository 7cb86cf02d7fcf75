"""A signal is a request, in the main thread, as long as somebody looks."""

import signal
import threading

import pytest

from gft_jax.run.signals import HINT, Preempted, stop_requests


@pytest.fixture
def before():
  """What the handler that stood before has got; a signal ends no test."""
  got = []
  handler = lambda *_: got.append('SIGTERM')  # noqa: E731
  found = signal.signal(signal.SIGTERM, handler)
  yield got
  signal.signal(signal.SIGTERM, found)


def test_sigterm_is_a_request_and_nothing_else(before):
  with stop_requests() as request:
    assert request.number == 0
    signal.raise_signal(signal.SIGTERM)
    assert request.number == signal.SIGTERM
    signal.raise_signal(signal.SIGTERM)  # A second one does no harm.
  assert before == []


@pytest.fixture
def interrupts():
  """Ctrl-C as Python has it; who started the tests may ignore it."""
  found = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, found)


@pytest.mark.usefixtures('interrupts')
def test_ctrl_c_is_a_request_and_a_second_one_is_an_interrupt(capfd):
  with stop_requests() as request:
    signal.raise_signal(signal.SIGINT)
    assert request.number == signal.SIGINT
    assert capfd.readouterr().err == f'{HINT}\n'
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  with pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures('interrupts')
def test_the_first_of_two_signals_says_how_the_process_ends(before, capfd):
  with stop_requests() as request:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)  # Not the second Ctrl-C.
  assert request.number == signal.SIGTERM and before == []


def test_a_signal_that_is_ignored_stays_ignored():
  found = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with stop_requests() as request:
      signal.raise_signal(signal.SIGINT)
    assert request.number == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGINT, found)


def test_who_was_stopped_says_by_what():
  stopped = Preempted(signal.SIGINT, 'saved')
  assert (str(stopped), stopped.number) == ('Ctrl-C: saved', signal.SIGINT)
  assert str(Preempted(signal.SIGTERM, 'saved')) == 'SIGTERM: saved'


def test_the_handler_before_is_put_back_also_after_an_error(before):
  handler = signal.getsignal(signal.SIGTERM)
  with stop_requests() as request:
    assert signal.getsignal(signal.SIGTERM) is not handler
  assert signal.getsignal(signal.SIGTERM) is handler
  with pytest.raises(KeyError), stop_requests():
    raise KeyError
  signal.raise_signal(signal.SIGTERM)
  assert before == ['SIGTERM'] and not request.number


def test_another_thread_gets_a_request_and_no_handler_is_touched(before):
  handler, entered, leave = (
    signal.getsignal(signal.SIGTERM),
    threading.Event(),
    threading.Event(),
  )
  requests = []

  def run():
    with stop_requests() as request:
      requests.append(request)
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
  assert before == ['SIGTERM'] and not requests[0].number
  assert signal.getsignal(signal.SIGTERM) is handler
