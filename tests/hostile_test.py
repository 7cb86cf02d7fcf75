r"""Model output that attacks the grader, through the real pool of two workers.

Each attack costs at most the time limit, keeps its worker within the memory
limit, executes nothing, and leaves a pool that grades the honest answer.
"""

import pathlib
import threading
import time

import pytest

from gft_jax import config, rewards

TIMEOUT_S = 1.0
MEMORY_MB = 1024
# What an answer may cost beyond its limit where the machine has other work: the
# pool looks at its clocks, and a killed worker's successor loads sympy.
SLACK_S = 4.0
HONEST = r'so \boxed{18}'


def boxed(text):
  return rf'\boxed{{{text}}}'


ATTACKS = {
  'nested powers': [
    boxed('9^{9^{9^{9}}}'),
    boxed('9^{' * 500 + '9' + '}' * 500),
    boxed('2^' * 3000 + '2'),
    boxed('(' * 40 + '9' + ')^{9}' * 40),
  ],
  '10^10^10': [
    boxed('10^{10^{10}}'),
    boxed('10^10^10'),
    '$10**10**10$',
    '$10^{10^{10}} - 10^{10^{10}} + 18$',
  ],
  'megabytes of braces': [
    '{' * 2**21 + '}' * 2**21,
    r'\boxed{' * 2**18,
    boxed('{' * 4000 + '}' * 4000),
    r'\left(' * 2**18,
    '$' * 2**21,
  ],
}


@pytest.fixture(scope='module')
def pool():
  """Both workers have started: what follows is the answers' own time."""
  settings = config.RewardConfig('math', 2, TIMEOUT_S, MEMORY_MB)
  with rewards.Grader(settings) as grader:
    grader.score(['a', 'b'], ['1', '2'], [boxed('1'), boxed('2')])
    yield grader


class Peak:
  """The largest address space that a child process has had meanwhile, in MB.

  Workers are replaced, so it looks every few milliseconds.
  """

  def __enter__(self):
    self.megabytes, self._over = 0.0, threading.Event()
    self._watcher = threading.Thread(target=self._watch)
    self._watcher.start()
    return self

  def __exit__(self, *unused_exception):
    self._over.set()
    self._watcher.join()

  def _watch(self):
    while not self._over.wait(0.005):
      for child in children():
        self.megabytes = max(self.megabytes, address_space(child))


def children():
  for thread in pathlib.Path('/proc/self/task').iterdir():
    try:
      yield from (thread / 'children').read_text().split()
    except OSError:
      continue  # The thread has ended.


def address_space(process):
  try:
    status = pathlib.Path(f'/proc/{process}/status').read_text()
  except OSError:
    return 0.0  # It has ended.
  found = [line for line in status.splitlines() if line.startswith('VmPeak')]
  return int(found[0].split()[1]) / 1024 if found else 0.0


def grade(grader, attacks):
  """Each attack before an honest answer, of which none is a duplicate."""
  count = len(attacks)
  responses = [text for attack in attacks for text in (attack, HONEST)]
  prompts = [str(i) for i in range(2 * count)]
  with Peak() as peak:
    start = time.monotonic()
    scores = grader.score(prompts, ['18'] * (2 * count), responses)
    seconds = time.monotonic() - start
  assert seconds < count * (TIMEOUT_S + SLACK_S)
  assert 50 < peak.megabytes <= MEMORY_MB
  return scores


@pytest.mark.parametrize('kind', ATTACKS)
def test_an_attack_costs_time_and_memory_within_the_limits(pool, kind):
  attacks = ATTACKS[kind]
  scores = grade(pool, attacks)
  assert scores.values.tolist() == [0, 1] * len(attacks)
  assert set(scores.failures) <= {'timeout', 'memory', 'parse', 'error'}
