"""Rewards: what they give, and what each way of misbehaving costs.

The cases of shared/reference/vectors.json ('reward_cases') come from the
official code's own string matching. They are not asserted: 'the answer is 7
because it must be' scores 0 there and is read as 7 here.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gft_jax import config, rewards

MISBEHAVING = 'reward_functions:by_response'


def grader(function, workers=0, timeout_s=5.0, memory_mb=1024):
  return rewards.Grader(
    config.RewardConfig(function, workers, timeout_s, memory_mb)
  )


def score(function, responses, answers=None, **settings):
  count = len(responses)
  with grader(function, **settings) as g:
    return g.score([''] * count, answers or [''] * count, responses)


@pytest.fixture(scope='module')
def pool():
  """Two workers of the misbehaving reward; most tests share them."""
  with grader(MISBEHAVING, workers=2, timeout_s=1.0) as g:
    yield g


def ask(pool, responses, **keywords):
  count = len(responses)
  return pool.score([''] * count, [''] * count, responses, **keywords)


@pytest.mark.parametrize(
  'answer, response, value, failures',
  [
    ('17', '7+8=15,15-3=12,12+5=17#17', 1, {}),
    ('17', '#17#18', 0, {}),
    ('17', '#18#17', 1, {}),
    ('-3', '# -3 ', 1, {}),
    ('17', '17', 0, {'parse': 1}),
    ('17', '#17,', 0, {'parse': 1}),
    ('17', '#1_7', 0, {'parse': 1}),
    ('17', '#' + '9' * 5000, 0, {'parse': 1}),
    ('17', '', 0, {'parse': 1}),
    ('seventeen', '#17', 0, {'gold': 1}),
  ],
)
def test_arithmetic(answer, response, value, failures):
  scores = score('arithmetic', [response], [answer])
  assert scores.values == [value]
  assert scores.values.dtype == np.float32
  assert scores.failures == failures


def test_an_unfinished_arithmetic_answer_is_wrong_and_no_failure():
  with grader('arithmetic') as g:
    scores = g.score(
      ['', ''], ['1', '1'], ['#1', '#1'], finished=np.array([True, False])
    )
  assert scores.values.tolist() == [1, 0]
  assert scores.failures == {}


def test_other_rewards_grade_unfinished_answers():
  with grader('reward_functions:length') as g:
    assert g.score([''], [''], ['abc'], finished=[False]).values == [3]


@pytest.mark.parametrize(
  'answer, response, value, failures',
  [
    (r'\frac{1}{2}', r'so \boxed{0.5}', 1, {}),
    ('18', r'\boxed{18}', 1, {}),
    ('18', r'\boxed{19}', 0, {}),
    ('18', 'She makes $9 * 2 = $<<9*2=18>>18 every day.\n#### 18', 1, {}),
    ('18', '#### 18\n\nQuestion: What is 2 + 2?', 1, {}),
    ('18', r'#### Step 18: so \boxed{7}', 0, {}),
    ('1,450', '#### 1450', 1, {}),
    ('(0, 5]', r'\boxed{(0, 5]}', 1, {}),
    ('2x+1', r'\boxed{1+2x}', 1, {}),
    ('18', 'no idea at all', 0, {'parse': 1}),
    ('18', '', 0, {'parse': 1}),
    ('18', '__import__("os")._exit(9)', 0, {'parse': 1}),
    ('', '18', 0, {'gold': 1}),
    ('18', '18 ' + 'x ' * rewards.MAX_CHARACTERS, 0, {'parse': 1}),
  ],
)
def test_math(answer, response, value, failures):
  scores = score('math', [response], [answer])
  assert scores.values == [value]
  assert scores.failures == failures


@pytest.mark.parametrize(
  ('function', 'response', 'answer'),
  [
    ('math', r'\boxed{3} no, \boxed{ \dfrac{1}{2} }.', r'\frac{1}{2}'),
    ('math', r'\boxed{\text{Evelyn}}', 'Evelyn'),
    ('math', r'\boxed{\$1,200.00}', '1200'),
    ('math', r'\boxed{\left(1, 2\right)}', '(1,2)'),
    ('math', r'\boxed{1,2}', '1,2'),
    ('math', r'\boxed{0.5', '0.5'),
    ('math', 'so 7\n#### 1,800\nThat is all 3.', '1800'),
    ('math', 'She makes 9 * 2 = $18.', '18'),
    ('math', 'It is -3.50 or so', '-3.50'),
    ('math', r'nothing in \boxed{}', None),
    ('math', 'nothing', None),
    ('mine:reward', 'about 7', '7'),
    ('choice', r'(A) or \boxed{C}', 'C'),
    ('choice', 'nothing', None),
    ('arithmetic', '7+8=15#15', '15'),
    ('arithmetic', '15', None),
  ],
)
def test_extract(function, response, answer):
  assert rewards.extract(function, response) == answer


def test_what_is_extracted_costs_little_whatever_it_is():
  start = time.perf_counter()
  for piece in (
    '{',
    r'\boxed{',
    r'\text{',
    r'\text ',
    '1,',
    '1,234',
    '-',
    '####',
  ):
    rewards.extract('math', piece * 1_000_000)
  assert time.perf_counter() - start < 2


def test_math_reads_the_experts_of_gsm8k(shared):
  """Aim: 99 %. Seen: all 7473, in 11 s."""
  import pyarrow.parquet

  table = pyarrow.parquet.read_table(shared / 'data/gsm8k/train.parquet')
  responses = table['answer'].to_pylist()[:500]
  answers = [r.rpartition('####')[2].strip() for r in responses]
  scores = score('math', responses, answers, workers=2)
  assert scores.values.mean() >= 0.99
  assert scores.failures == {}
  wrong = score('math', responses, answers[1:] + answers[:1], workers=2)
  assert wrong.values.mean() < 0.1


def test_hostile_mathematics_costs_the_time_limit_and_no_more():
  hostile = [
    r'\boxed{10^{10^{10}}}',
    r'\boxed{9^{9^{9^{9^{9}}}}}',
    '(' * 2**20,
    r'\boxed{' * 2**17,
    '{' * 2**20 + '}' * 2**20,
    r'\boxed{' + '10^' * 500 + '10}',
    r'\boxed{\prod_{i=1}^{10^{10}} i}',
    'import os; os._exit(1)',
    '\\boxed{__import__("os")._exit(1)}',
    '\0' * 100,
  ]
  responses = [text for bad in hostile for text in (bad, '18')]
  answers = ['18'] * len(responses)
  prompts = [str(i) for i in range(len(responses))]  # nothing is a duplicate
  with grader('math', workers=2, timeout_s=1.0) as g:
    start = time.monotonic()
    scores = g.score(prompts, answers, responses)
    seconds = time.monotonic() - start
  assert scores.values.tolist() == [0, 1] * len(hostile)
  assert 3 <= scores.failures['timeout'] <= 5
  assert seconds < 3 + 1.5 * len(hostile)


def test_every_misdeed_is_counted_and_the_rest_is_graded(pool):
  scores = ask(
    pool,
    'abc,hang,crash,eat,raise,exit,nan,inf,too large,none,text,true,abcd'.split(
      ','
    ),
  )
  assert scores.values.tolist() == [3] + [0] * 10 + [1, 4]
  assert scores.failures == {
    'timeout': 1,
    'crash': 1,
    'memory': 1,
    'error': 2,
    'invalid': 5,
  }
  assert scores.timed_out == (1,)


def test_a_hang_outside_the_interpreter_ends_at_the_limit(pool):
  ask(pool, ['warm'])
  start = time.monotonic()
  scores = ask(pool, ['hang in C'])
  assert scores.timed_out == (0,)
  assert 0.9 < time.monotonic() - start < 1.8  # the alarm would take 2


def test_in_this_process_misdeeds_that_return_are_counted_too():
  scores = score(MISBEHAVING, ['abc', 'raise', 'exit', 'nan', 'eat all'])
  assert scores.values.tolist() == [3, 0, 0, 0, 0]
  assert scores.failures == {'error': 2, 'invalid': 1, 'memory': 1}


def test_a_killed_worker_is_replaced():
  with grader('reward_functions:process_id', workers=1) as g:
    first = g.score([''], [''], ['a']).values[0]
    os.kill(int(first), signal.SIGKILL)
    time.sleep(0.5)
    second = g.score([''], [''], ['a']).values[0]
  assert first != second


def test_a_worker_that_crashed_is_replaced(pool):
  for _ in range(3):
    assert ask(pool, ['crash', 'crash!']).values.tolist() == [0, 6]


def test_a_worker_that_ran_out_of_memory_is_replaced():
  with grader(MISBEHAVING, workers=1) as g:
    first = ask(g, ['worker']).values
    assert ask(g, ['eat']).failures == {'memory': 1}
    assert ask(g, ['worker']).values != first


def test_time_outs_are_replayed_from_the_journal(pool):
  start = time.monotonic()
  scores = ask(pool, ['abc', 'hang', 'ab'], timed_out=(1, 2))
  assert time.monotonic() - start < 0.9
  assert scores.values.tolist() == [3, 0, 0]
  assert scores.failures == {'timeout': 2}
  assert scores.timed_out == (1, 2)


def test_equal_answers_are_graded_once():
  with grader('reward_functions:calls') as g:
    first, other, again = g.score([''] * 3, [''] * 3, ['a', 'b', 'a']).values
  assert first == again == other - 1


def test_the_prompt_takes_part():
  with grader('reward_functions:prompt_too') as g:
    assert g.score(['a', 'b'], ['', ''], ['', '']).values.tolist() == [1, 0]


def test_no_answers():
  scores = score('arithmetic', [])
  assert scores.values.shape == (0,)
  assert scores.failures == {}


def test_different_numbers_of_texts_are_refused():
  with grader('arithmetic') as g, pytest.raises(ValueError, match='zip'):
    g.score(['', ''], ['1'], ['#1'])


def test_a_worker_does_not_import_jax():
  assert 'jax' in sys.modules
  scores = score('reward_functions:jax_is_loaded', ['a'], workers=1)
  assert scores.values == [0]


def test_a_batch_takes_about_a_second():
  with grader('math', workers=2) as g:
    g.score(['', ''], ['1', '2'], [r'\boxed{1}', r'\boxed{2}'])
    responses = [rf'so \boxed{{\frac{{{i}}}{{7}}}}' for i in range(128)]
    start = time.monotonic()
    scores = g.score([''] * 128, [f'{i}/7' for i in range(128)], responses)
    seconds = time.monotonic() - start
  assert scores.values.mean() == 1
  assert seconds < 5  # about 0.7 on an idle machine of two cores


def test_a_hung_worker_does_not_outlive_its_parent():
  script = (
    'from gft_jax import config, rewards\n'
    "c = config.RewardConfig('reward_functions:by_response', 1, 1.0)\n"
    'with rewards.Grader(c) as g:\n'
    "  pid = g.score([''], [''], ['worker']).values[0]\n"
    '  print(int(pid), flush=True)\n'
    "  g.score([''], [''], ['hang'])\n"
  )
  parent = subprocess.Popen(
    [sys.executable, '-c', script],
    stdout=subprocess.PIPE,
    env={**os.environ, 'PYTHONPATH': os.path.dirname(__file__)},
  )
  worker = int(parent.stdout.readline())
  time.sleep(0.5)
  parent.kill()
  parent.wait()
  deadline = time.monotonic() + 10
  while _alive(worker) and time.monotonic() < deadline:
    time.sleep(0.1)
  outlived = _alive(worker)
  if outlived:
    os.kill(worker, signal.SIGKILL)
  assert not outlived


def _alive(pid: int) -> bool:
  try:
    with open(f'/proc/{pid}/stat') as f:
      return f.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


@pytest.mark.parametrize(
  'function, message',
  [
    ('arithmatic', 'did you mean arithmetic'),
    ('no_such_module:f', "cannot import 'no_such_module'"),
    ('reward_functions:lenght', 'did you mean length'),
    ('reward_functions:not_a_function', "no function 'not_a_function'"),
    ('reward_functions:', "no function ''"),
    (':length', "cannot import ''"),
  ],
)
def test_a_wrong_name_is_one_clear_line(function, message):
  with pytest.raises(config.ConfigError, match=message) as error:
    grader(function)
  assert '\n' not in str(error.value)
  assert repr(function) in str(error.value)
