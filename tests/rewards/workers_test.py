"""Guarded processes: every one may be killed at any moment."""

import multiprocessing
import os
import pathlib
import random
import signal
import subprocess
import threading
import time

import pytest

from gft_jax.rewards import workers
from gft_jax.rewards.workers import Ended


def start(function=None):
  return function or _double


def _double(case):
  time.sleep(0.001)
  return 2 * case


def _do(case):
  """Does what the case says; the answer is the case and the process's id."""
  match case:
    case 'hang':
      time.sleep(1000)
    case 'exit':
      os._exit(3)
    case 'fork':
      if not os.fork():
        return 'forked', os.getpid()
    case 'fork and exit':
      if os.fork():
        os._exit(3)
      time.sleep(5)
      os._exit(0)
    case 'close files and hang':
      os.closerange(3, 256)
      time.sleep(1000)
    case 'thread':
      threading.Thread(target=time.sleep, args=[1000]).start()
    case 'process':
      process = multiprocessing.Process(target=time.sleep, args=[1000])
      process.start()
      process.terminate()
      process.join()
    case 'leave a process and hang':
      child = subprocess.Popen(['sleep', '1000'])
      pathlib.Path(os.environ['GFT_JAX_TEST_CHILD']).write_text(str(child.pid))
      time.sleep(1000)
    case 'say no JSON':
      return {1, 2}
    case int():
      os.kill(os.getpid(), case)
  return case, os.getpid()


def start_slowly():
  time.sleep(1)
  return _double


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
  assert does.map(['b']) == [['b', first]]


@pytest.mark.parametrize('seed', range(3))
def test_processes_killed_at_any_moment_cost_no_answer(pool, seed):
  """While they start, take a case, answer it, or wait."""
  doubles, draw = pool(2, 10.0, start), random.Random(seed)
  for _ in range(8):
    timer = threading.Timer(draw.uniform(0, 0.4), kill_one, [draw])
    timer.start()
    while timer.is_alive():
      assert doubles.map(range(40)) == list(range(0, 80, 2))


def kill_one(draw):
  """Kills a process of this one, of any age."""
  while not (alive := multiprocessing.active_children()):
    time.sleep(0.001)
  draw.choice(alive).kill()


def test_what_ends_a_process_takes_one_case_with_it(pool):
  does = pool(2, 1.0, start, _do)
  cases = ['a', 'hang', 'b', 'exit', 'say no JSON', signal.SIGSEGV, 'c']
  a, hang, b, left, said, fault, c = does.map(cases)
  assert (a[0], b[0], c[0]) == ('a', 'b', 'c')
  assert hang == Ended(None)
  assert left == Ended(3)
  assert said == Ended(1)
  assert fault == Ended(-signal.SIGSEGV)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_case_whose_process_is_killed_twice_is_given_up(pool, number):
  does = pool(1, 10.0, start, _do)
  killed, (b, _) = does.map([number, 'b'])
  assert killed == Ended(-number)
  assert b == 'b'


@pytest.mark.parametrize(
  'misdeed', ['fork', 'fork and exit', 'close files and hang', 'thread']
)
def test_what_a_case_leaves_behind_reaches_no_other(pool, misdeed):
  """One process, so that all cases follow each other in it."""
  does = pool(1, 1.0, start, _do)
  began = time.monotonic()
  first = does.map(['a', misdeed, 'b'])
  second = does.map(['c', 'd' * 2**20])
  assert [first[0][0], first[2][0], second[0][0]] == ['a', 'b', 'c']
  assert second[1][0] == 'd' * 2**20
  assert time.monotonic() - began < 5  # the process that was left runs on


def test_a_case_may_use_processes_of_its_own(pool):
  assert pool(1, 10.0, start, _do).map(['process'])[0][0] == 'process'


def test_what_a_late_case_has_started_ends_with_it(pool, tmp_path, monkeypatch):
  file = tmp_path / 'child'
  monkeypatch.setenv('GFT_JAX_TEST_CHILD', str(file))
  does = pool(1, 1.0, start, _do)
  assert does.map(['leave a process and hang']) == [Ended(None)]
  wait_for_the_end_of(file.read_text())


def test_a_signal_to_the_group_does_not_reach_the_processes(pool):
  does = pool(1, 10.0, start, _do)
  ((_, pid),) = does.map(['a'])
  assert os.getpgid(pid) == pid != os.getpgid(0)


def test_starting_is_charged_to_no_case(pool):
  assert pool(1, 0.5, start_slowly).map([1]) == [2]


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


@pytest.mark.parametrize('again', [False, True])
def test_an_interrupted_call_leaves_nothing_to_the_next(
  pool, monkeypatch, again
):
  does = pool(1, 10.0, start, _do)
  does.map(['a'])

  def interrupt(*unused):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(workers.Workers, '_wait', interrupt)
    if again:
      patch.setattr(workers._Worker, 'end', interrupt)
    with pytest.raises(KeyboardInterrupt):
      does.map(['stale'])
  assert does.map(['b'])[0][0] == 'b'
  for one in multiprocessing.active_children():
    one.kill()


def test_processes_end_with_their_parent(tmp_path):
  """It is killed; the second has left a thread."""
  context = multiprocessing.get_context('spawn')
  parent = context.Process(target=_work_and_hang, args=(tmp_path,))
  parent.start()
  wait_until(lambda: (tmp_path / 'thread').exists())
  parent.kill()
  parent.join()
  for path in tmp_path.iterdir():
    wait_for_the_end_of(path.read_text())


def _work_and_hang(folder):
  for case in ('a', 'thread'):
    pool = workers.Workers(1, 100.0, start, _do)
    ((_, pid),) = pool.map([case])
    kept.append(pool)
    (folder / 'part').write_text(str(pid))
    (folder / 'part').rename(folder / case)
  time.sleep(1000)


kept = []


def test_a_program_that_closes_nothing_ends():
  context = multiprocessing.get_context('spawn')
  program = context.Process(target=_work_and_end)
  program.start()
  program.join(20)
  assert program.exitcode == 0


def _work_and_end():
  kept.append(workers.Workers(1, 100.0, start, _do))
  kept[-1].map(['a'])


def wait_until(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def wait_for_the_end_of(pid):
  def ended():
    try:
      stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    except FileNotFoundError:
      return True
    return stat.rpartition(')')[2].split()[0] == 'Z'

  wait_until(ended)
