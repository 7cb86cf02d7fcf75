"""Rewards: what they give, and what each way of misbehaving costs."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gft_jax import answers as answers_lib
from gft_jax.config import ConfigError, RewardConfig
from gft_jax.rewards.grader import Grader, Problems, parts_of, score_groups

MISBEHAVING = 'reward_functions:by_response'


def grader(function, workers=0, timeout_s=5.0, memory_mb=1024):
  return Grader(
    RewardConfig(
      function, workers=workers, timeout_s=timeout_s, memory_mb=memory_mb
    )
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
    ('18', '18 ' + 'x ' * answers_lib.MAX_CHARACTERS, 0, {'parse': 1}),
  ],
)
def test_math(answer, response, value, failures):
  scores = score('math', [response], [answer])
  assert scores.values == [value]
  assert scores.failures == failures


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


def test_what_a_worker_loads_is_charged_to_no_answer():
  # In a process of its own, since a worker limits its memory.
  code = (
    'import sys; from gft_jax.config import RewardConfig;'
    ' from gft_jax.rewards import grader;'
    " grader._start_worker(RewardConfig('math'));"
    " assert 'math_verify' in sys.modules"
  )
  subprocess.run([sys.executable, '-c', code], check=True)


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
  assert 1 <= scores.failures['timeout'] <= 5
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


@pytest.mark.parametrize(
  'kills, value, failures', [(1, 3, {}), (2, 0, {'crash': 1})]
)
def test_an_answer_whose_worker_is_killed_is_graded_once_more(
  tmp_path, monkeypatch, kills, value, failures
):
  file = tmp_path / 'kills'
  file.write_text('now\n' * kills)
  monkeypatch.setenv('GFT_JAX_TEST_KILLS', str(file))
  scores = score('reward_functions:killed', ['abc'], workers=1)
  assert not file.read_text()
  assert scores.values == [value]
  assert scores.failures == failures


def test_a_worker_that_crashed_is_replaced(pool):
  for _ in range(3):
    assert ask(pool, ['crash', 'crash!']).values.tolist() == [0, 6]


def test_a_worker_that_ran_out_of_memory_is_replaced():
  with grader(MISBEHAVING, workers=1) as g:
    first = ask(g, ['worker']).values
    assert ask(g, ['eat']).failures == {'memory': 1}
    assert ask(g, ['worker']).values != first


def test_known_time_outs_are_not_run_again(pool):
  ask(pool, ['warm'])
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


@pytest.mark.parametrize(
  'function, parts',
  [
    ('math', [(1, 'math')]),
    ('math+format', [(1, 'math'), (1, 'format')]),
    (' 2 * math - length ', [(2, 'math'), (-1, 'length')]),
    ('-1e-3*length + .5*a.b:c', [(-0.001, 'length'), (0.5, 'a.b:c')]),
  ],
)
def test_parts_of_a_sum(function, parts):
  assert parts_of(function) == tuple(parts)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_weighted_sum_of_named_parts(workers):
  settings = RewardConfig(
    'exact + 0.5 * format - 0.1 * length + numeric',
    length_limit=10,
    workers=workers,
  )
  with Grader(settings) as g:
    scores = g.score(
      [''] * 3, ['8'] * 3, [r'\boxed{8}', r'\boxed{eight}', 'maybe']
    )
  assert {name: x.tolist() for name, x in scores.parts.items()} == {
    'exact': [1, 0, 0],
    'format': [1, 1, 0],
    'length': [pytest.approx(0.9), 1, 0.5],
    'numeric': [1, 1, 0],
  }
  # A part that cannot read its answer costs itself alone.
  assert scores.failures == {'parse': 1}
  np.testing.assert_allclose(scores.values, [2.41, 1.4, -0.05], atol=1e-6)


def test_a_case_that_takes_its_worker_down_scores_nothing_at_all():
  with grader(f'{MISBEHAVING} + length', workers=1, timeout_s=1.0) as g:
    scores = g.score(['', ''], ['', ''], ['hang', 'right'])
  assert scores.values[0] == 0
  assert scores.values[1] > 0
  assert scores.failures == {'timeout': 1}
  assert scores.timed_out == (0,)


def test_a_model_alone_is_never_late():
  settings = RewardConfig('model', model='folder')
  with Grader(settings) as g:
    scores = g.score(['', ''], ['', ''], ['a', 'b'], judged=[0.5, -1.0])
  assert scores.timed_out == () and scores.failures == {}


def test_what_a_model_judged_is_a_part_like_the_others():
  settings = RewardConfig('exact + 2 * model', model='folder')
  with Grader(settings) as g:
    scores = g.score(['', ''], ['8', '8'], ['8', '9'], judged=[0.5, -1.0])
  assert scores.values.tolist() == [2, -2]
  assert scores.parts['model'].tolist() == [0.5, -1]


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
    'from gft_jax import config\n'
    'from gft_jax.rewards import grader\n'
    "c = config.RewardConfig('reward_functions:by_response',"
    ' workers=1, timeout_s=1.0)\n'
    'with grader.Grader(c) as g:\n'
    "  pid = g.score([''], [''], ['worker']).values[0]\n"
    '  print(int(pid), flush=True)\n'
    "  g.score([''], [''], ['hang'])\n"
  )
  parent = subprocess.Popen(
    [sys.executable, '-c', script],
    stdout=subprocess.PIPE,
    env={
      **os.environ,
      'PYTHONPATH': os.path.dirname(os.path.dirname(__file__)),
    },
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
    (':length', "':length' is neither a name nor a weighted sum"),
    ('math format', 'neither a name nor a weighted sum'),
    ('2 * math + ', 'neither a name nor a weighted sum'),
    ('math + math', 'names a part twice'),
    ('exact + lenght', 'did you mean length'),
    ('model', 'name its folder in reward.model'),
  ],
)
def test_a_wrong_name_is_refused_in_one_line(function, message):
  with pytest.raises(ConfigError, match=message) as error:
    grader(function)
  assert '\n' not in str(error.value)
  assert function.split()[-1] in str(error.value)


def test_replayed_time_outs_keep_their_position_beside_empty_slots():
  with Grader(RewardConfig(function='arithmetic')) as grader:
    scored = score_groups(
      grader,
      Problems(['', ''], ['1', '2']),
      [['', '#1'], ['#2', '#2']],
      np.array([[False, True], [True, True]]),
      np.ones((2, 2), bool),
      timed_out=(2,),
    )
  assert scored.values.tolist() == [[0, 1], [0, 1]]
  assert scored.timed_out == (2,)
  assert scored.failures == {'timeout': 1}
