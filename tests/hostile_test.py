r"""Model output that attacks the grader, through the real pool of two workers.

Each attack costs at most the time limit, keeps its worker within the memory
limit, executes nothing, and leaves a pool that grades the honest answer.
"""

import pathlib
import threading
import time

import pytest

from gft_jax.config import RewardConfig
from gft_jax.rewards.grader import Grader

TIMEOUT_S = 1.0
MEMORY_MB = 512
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


def grader(function):
  return Grader(
    RewardConfig(
      function=function,
      workers=2,
      timeout_s=TIMEOUT_S,
      memory_mb=MEMORY_MB,
    )
  )


@pytest.fixture(scope='module')
def pool():
  """Both workers have started: what follows is the answers' own time."""
  with grader('math') as found:
    found.score(['a', 'b'], ['1', '2'], [boxed('1'), boxed('2')])
    yield found


class Peak:
  """The most memory that a child process has held meanwhile, in MB.

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
        self.megabytes = max(self.megabytes, resident(child))


def children():
  for thread in pathlib.Path('/proc/self/task').iterdir():
    try:
      yield from (thread / 'children').read_text().split()
    except OSError:
      continue  # The thread has ended.


def resident(process):
  folder, own = pathlib.Path(f'/proc/{process}'), pathlib.Path('/proc/self')
  try:
    if (folder / 'cmdline').read_bytes() == (own / 'cmdline').read_bytes():
      return 0.0  # It is about to start, and still holds this process's pages.
    status = (folder / 'status').read_text()
  except OSError:
    return 0.0  # It has ended.
  found = [line for line in status.splitlines() if line.startswith('VmHWM')]
  return int(found[0].split()[1]) / 1024 if found else 0.0


def grade(pool, attacks):
  """Each attack before an honest answer, of which none is a duplicate."""
  count = len(attacks)
  responses = [text for attack in attacks for text in (attack, HONEST)]
  prompts = [str(i) for i in range(2 * count)]
  with Peak() as peak:
    start = time.monotonic()
    scores = pool.score(prompts, ['18'] * (2 * count), responses)
    seconds = time.monotonic() - start
  assert seconds < count * (TIMEOUT_S + SLACK_S)
  assert 0 < peak.megabytes <= MEMORY_MB
  return scores


@pytest.mark.parametrize('kind', ATTACKS)
def test_an_attack_costs_time_and_memory_within_the_limits(pool, kind):
  attacks = ATTACKS[kind]
  scores = grade(pool, attacks)
  assert scores.values.tolist() == [0, 1] * len(attacks)
  assert set(scores.failures) <= {'timeout', 'memory', 'parse', 'error'}


# Each creates a file named FILE where Python, or sympy's parser, runs it.
CODE = [
  '__import__("pathlib").Path("FILE").touch()',
  'open("FILE", "w")',
  '__import__("os").system("touch FILE")',
  "exec(\"open('FILE', 'w')\")",
  '(lambda: open("FILE", "w"))()',
  '[open("FILE", "w") for _ in "x"]',
]
WRITTEN = [
  '{}',
  r'\boxed{{{}}}',
  '${}$',
  '#### {}',
  r'\[{}\]',
  '```python\n{}\n```',
  r'\boxed{{\text{{{}}}}}',
  'The answer is {}',
]


@pytest.mark.parametrize('function', ['math', 'arithmetic', 'choice'])
def test_python_in_an_answer_is_never_executed(tmp_path, function):
  """Nor where the reference answer of a dataset holds it."""
  victim = tmp_path / 'executed'
  for code in CODE:
    eval(code.replace('FILE', str(victim)))
    assert victim.exists(), 'this code is no attack'
    victim.unlink()
  texts = [
    form.format(code.replace('FILE', str(victim)))
    for code in CODE
    for form in WRITTEN
  ]
  honest = {'choice': 'B'}.get(function, '18')
  with grader(function) as pool:
    answers = [honest] * len(texts)
    scores = pool.score([''] * len(texts), answers, texts)
    assert not scores.values.any()
    pool.score(texts, texts, ['18'] * len(texts))
  assert not victim.exists()


def hoard(prompt: str, answer: str, response: str) -> float:
  """A reward that takes three times the limit, and touches it."""
  hoarded = [b'x' * (2**20 + i) for i in range(3 * MEMORY_MB)]
  return float(len(hoarded))


def test_a_worker_cannot_hold_more_than_the_limit():
  with grader(f'{__name__}:hoard') as pool, Peak() as peak:
    scores = pool.score([''], [''], ['x'])
  assert scores.failures == {'memory': 1}
  assert MEMORY_MB / 4 < peak.megabytes <= MEMORY_MB
