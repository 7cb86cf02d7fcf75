"""Guarded processes: every one may be killed at any moment."""

import functools
import multiprocessing
import os
import pathlib
import random
import signal
import threading
import time

import pytest

from gft_jax import workers
from gft_jax.workers import Expired


def start(function=None):
  return function or _double


def _double(case):
  time.sleep(0.001)
  return 2 * case


def _do(case):
  """Does what the case says; any other is given back with the process's id."""
  if case == 'hang':
    time.sleep(1000)
  if case == 'exit':
    os._exit(3)
  if case == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
  if case == 'terminated':
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
  return case, os.getpid()


def start_slowly(folder):
  """The second process takes longer to start than a case may take."""
  if any(folder.iterdir()):
    time.sleep(1)
  (folder / str(os.getpid())).touch()
  return _do


def fail_to_start(log, times):
  with log.open('a') as file:
    file.write('x')
  if len(log.read_text()) <= times:
    os._exit(1)
  return _double


@pytest.fixture
def pool():
  made = []

  def make(*arguments):
    made.append(workers.Workers(*arguments))
    return made[-1]

  yield make
  for one in made:
    one.close()
  assert not multiprocessing.active_children()


@pytest.mark.parametrize('count', [1, 3])
def test_answers_are_in_the_order_of_their_cases(pool, count):
  doubles = pool(count, 10.0, start)
  assert doubles.map([]) == []
  assert doubles.map(range(50)) == list(range(0, 100, 2))
  assert doubles.map([1]) == [2]


def test_no_more_processes_than_cases_and_they_stay(pool):
  does = pool(4, 10.0, start, _do)
  ((_, first),) = does.map(['a'])
  assert len(multiprocessing.active_children()) == 1
  assert does.map(['b']) == [('b', first)]


@pytest.mark.parametrize('seed', range(3))
def test_processes_killed_at_any_moment_cost_no_answer(pool, seed):
  """While they start, take a case, answer it, or wait."""
  doubles, draw, killed = pool(2, 10.0, start), random.Random(seed), set()
  over = threading.Event()

  def kill():
    # Cases take a millisecond, so none has the bad luck to be killed twice.
    while not over.wait(draw.uniform(0.02, 0.2)):
      if alive := multiprocessing.active_children():
        victim = draw.choice(alive)
        victim.kill()
        killed.add(victim.pid)

  killer = threading.Thread(target=kill)
  killer.start()
  try:
    while len(killed) < 10:
      assert doubles.map(range(40)) == list(range(0, 80, 2))
  finally:
    over.set()
    killer.join()


def test_what_ends_a_process_takes_one_case_with_it(pool):
  does = pool(2, 1.0, start, _do)
  cases = ['a', 'hang', 'b', 'exit', 'killed', 'c']
  a, hang, b, left, killed, c = does.map(cases)
  assert (a[0], b[0], c[0]) == ('a', 'b', 'c')
  assert hang == Expired(None)
  assert left == Expired(3)
  assert killed == Expired(-signal.SIGKILL)


def test_a_signal_to_the_whole_group_is_the_parents_affair(pool):
  does = pool(1, 10.0, start, _do)
  ((_, first),) = does.map(['a'])
  assert does.map(['terminated', 'b']) == [('terminated', first), ('b', first)]


def test_starting_is_charged_to_no_case(pool, tmp_path):
  does = pool(2, 0.5, start_slowly, tmp_path)
  assert [answer[0] for answer in does.map('abcd')] == list('abcd')


def test_processes_that_died_while_they_waited_are_replaced(pool):
  does = pool(2, 10.0, start, _do)
  first = {pid for _, pid in does.map('ab')}
  for pid in first:
    os.kill(pid, signal.SIGKILL)
  time.sleep(0.2)
  second = {pid for _, pid in does.map('ab')}
  assert not first & second


@pytest.mark.parametrize('count, times', [(1, 2), (2, 5)])
def test_a_process_that_fails_to_start_is_replaced(
  pool, tmp_path, count, times
):
  starts = tmp_path / 'starts'
  assert pool(count, 10.0, fail_to_start, starts, times).map([1]) == [2]
  assert len(starts.read_text()) == times + 1


def test_processes_that_cannot_start_are_an_error(pool, tmp_path):
  starts = tmp_path / 'starts'
  broken = pool(1, 10.0, fail_to_start, starts, 1000)
  with pytest.raises(RuntimeError, match='3 worker processes ended'):
    broken.map([1])
  assert len(starts.read_text()) == 3


def test_an_interrupted_call_leaves_nothing_to_the_next(pool, monkeypatch):
  does = pool(1, 10.0, start, _do)
  does.map(['a'])

  def interrupt(*unused):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(workers.Workers, '_wait', interrupt)
    with pytest.raises(KeyboardInterrupt):
      does.map(['stale'])
  assert does.map(['b'])[0][0] == 'b'


def test_processes_end_with_their_parent(tmp_path):
  context = multiprocessing.get_context('spawn')
  parent = context.Process(target=_hang_with_a_worker, args=(tmp_path,))
  parent.start()
  while not (ids := list(tmp_path.iterdir())):
    time.sleep(0.05)
  parent.kill()
  parent.join()
  deadline = time.monotonic() + 10
  while _alive(ids[0].name) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not _alive(ids[0].name)


def _hang_with_a_worker(folder):
  pool = workers.Workers(1, 100.0, start, functools.partial(_do))
  ((_, pid),) = pool.map(['a'])
  (folder / str(pid)).touch()
  time.sleep(1000)


def _alive(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return stat.rpartition(')')[2].split()[0] != 'Z'
