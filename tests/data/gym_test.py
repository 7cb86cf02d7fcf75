"""Tasks of Reasoning Gym as rows, graded by their own scorers."""

import json
import re
import sys

import pytest

from gft_jax import data
from gft_jax.answers import AnswerError
from gft_jax.config import ConfigError, DataConfig, RewardConfig
from gft_jax.data import builders
from gft_jax.rewards.grader import Grader

pytest.importorskip('reasoning_gym')

from gft_jax.data import gym


def source(tmp_path, split='train', seed=0, **settings):
  config = DataConfig(cache=str(tmp_path), **settings)
  return builders.source(config, split, seed)


def test_a_task_is_a_source_of_rows(tmp_path):
  settings = {'path': 'reasoning_gym/chain_sum', 'rows': 30}
  train = source(tmp_path, **settings).rows
  assert len(train) == 30
  assert train == source(tmp_path, **settings).rows
  row = train[7]
  answer = json.loads(row['answer'])
  assert row['expert'] == f'<answer>{answer["answer"]}</answer>'
  assert (answer['task'], answer['index']) == ('chain_sum', 7)
  test = source(tmp_path, 'test', **settings).rows
  other = source(tmp_path, seed=1, **settings).rows
  asked = [{row['prompt'] for row in rows} for rows in (train, test, other)]
  assert not asked[0] & asked[1] and not asked[0] & asked[2]


def test_sizes_where_none_are_set(tmp_path):
  path = 'reasoning_gym/chain_sum'
  assert len(source(tmp_path, path=path).rows) == 1000
  assert len(source(tmp_path, 'test', path=path).rows) == 256


def test_a_file_may_be_held_out_instead(tmp_path):
  file = tmp_path / 'a.jsonl'
  file.write_text('{"prompt": "p", "answer": "1"}\n')
  settings = {'path': 'reasoning_gym/chain_sum', 'eval_path': str(file)}
  assert len(source(tmp_path, 'test', **settings).rows) == 1


# gsm_symbolic has worked solutions, acre depends on the size of the dataset,
# list_functions and others have answers that are no single line.
TASKS = (
  'acre',
  'binary_matrix',
  'chain_sum',
  'countdown',
  'gsm_symbolic',
  'n_queens',
  'number_sorting',
  'polynomial_multiplication',
  'puzzle24',
  'simple_integration',
  'spiral_matrix',
  'string_insertion',
  'sudoku',
)


@pytest.mark.parametrize('task', TASKS)
def test_the_expert_has_the_full_score(tmp_path, task):
  rows = source(tmp_path, path=f'reasoning_gym/{task}', rows=4).rows
  for row in rows:
    assert gym.score(row['prompt'], row['answer'], row['expert']) == 1
    assert gym.score(row['prompt'], row['answer'], 'No idea.') < 1


@pytest.mark.slow
def test_every_task_gives_full_score_to_its_answers(tmp_path):
  from reasoning_gym.factory import DATASETS

  for task in sorted(set(DATASETS) - {'composite'}):
    path = gym.written(task, 'train', 5, 0, tmp_path)
    for line in path.read_text().splitlines():
      row = json.loads(line)
      if 'expert' in row:
        assert gym.score('', row['answer'], row['expert']) == 1, task


def test_the_reward_of_a_run(tmp_path):
  row, other = source(tmp_path, path='reasoning_gym/chain_sum', rows=2).rows
  right = json.loads(row['answer'])['answer']
  settings = RewardConfig(function='gft_jax.data.gym:score', workers=1)
  with Grader(settings) as grader:
    scores = grader.score(
      [row['prompt']] * 4,
      [row['answer']] * 3
      + [other['answer'].replace('"index": 1', '"index": 0')],
      [f'<answer>{right}</answer>', 'nothing', right, right],
    )
  assert scores.values.tolist() == [1, 0, 1, 0]
  assert scores.failures == {'error': 1}, 'the row of another version'


@pytest.mark.parametrize(
  'response, worth',
  [
    ('<answer> 1 </answer> no, <answer>{}</answer> it is', 1),
    ('<think><answer>1</answer></think>{}', 1),
    ('so 1 #### {}\n', 1),
    ('The answer is {}.', 1),
    (' {} ', 1),
    ('<answer>{}</answer><answer>1</answer>', 0),
  ],
)
def test_a_response_is_read_as_for_every_reward(tmp_path, response, worth):
  (row,) = source(tmp_path, path='reasoning_gym/chain_sum', rows=1).rows
  right = json.loads(row['answer'])['answer']
  score = gym.score('', row['answer'], response.format(right))
  assert (score == 1) == worth


@pytest.mark.parametrize('response', ['', '<think>4', '<answer></answer>'])
def test_a_response_without_an_answer(tmp_path, response):
  (row,) = source(tmp_path, path='reasoning_gym/chain_sum', rows=1).rows
  with pytest.raises(AnswerError):
    gym.score('', row['answer'], response)


@pytest.mark.parametrize(
  'task, answer, seen',
  [
    ('n_queens', "[1 for a in 'aa' for b in 'aa' if 0]", False),
    ('n_queens', "[['_', 'Q'], ['Q', '_']]", True),
    ('string_insertion', 'ABBCA', True),
    ('spiral_matrix', '1 2 3', True),
    ('polynomial_multiplication', '9**9**9', False),
    ('polynomial_multiplication', '9**(9**9)', False),
    ('polynomial_multiplication', 'x**99999', False),
    ('polynomial_multiplication', '3*x**2*y**3 - 12*x + 1', True),
    ('intermediate_integration', 'exp(2*x)*sin(x)/2 + C', True),
  ],
)
def test_what_a_scorer_may_see(task, answer, seen):
  assert bool(re.fullmatch(gym.EVALUATED[task], answer)) == seen


HOSTILE = {
  'string_insertion': "[__import__('os').mkdir('{}')]",
  'n_queens': 'exec(\'import os; os.mkdir("{}")\')',
  'binary_matrix': "open('{}', 'w')",
  'spiral_matrix': '[[].__class__.__base__.__subclasses__()]',
  'countdown': "__import__('os').mkdir('{}')",
  'puzzle24': "__import__('os').mkdir('{}') or 24",
  'polynomial_multiplication': "__import__('os').mkdir('{}')",
  'simple_integration': "x.__class__.__mro__[1] + open('{}', 'w')",
  'intermediate_integration': 'exec(\'open("{}", "w")\')',
}


@pytest.mark.parametrize('task', sorted(gym.EVALUATED))
def test_an_answer_is_never_executed(tmp_path, task, monkeypatch):
  (row,) = source(tmp_path, path=f'reasoning_gym/{task}', rows=1).rows
  victim = tmp_path / 'victim'
  answer = f'<answer>{HOSTILE[task].format(victim)}</answer>'
  assert gym.score('', row['answer'], answer) == 0
  assert not victim.exists()
  # It is the pattern that stops it: the scorer itself would run it.
  if 'mkdir' in answer and 'import os;' not in answer:
    monkeypatch.setitem(gym.EVALUATED, task, '(?s:.*)')
    gym.score('', row['answer'], answer)
    assert victim.exists()


@pytest.mark.parametrize(
  'text', ['x.diff', 'x. n()', 'S("1")', 'exec(x)', 'a_b', 'expand(x)', 'x;y']
)
def test_a_formula_holds_no_other_names(text):
  assert not re.fullmatch(gym._FORMULA, text)


def test_a_power_cannot_take_forever(tmp_path):
  (row,) = source(tmp_path, path='reasoning_gym/countdown', rows=1).rows
  assert gym.score('', row['answer'], '9**9**9**9') == 0


@pytest.mark.parametrize(
  'task, message',
  [
    ('chain_sums', r"no task 'chain_sums'; did you mean chain_sum\?"),
    ('composite', 'task composite of Reasoning Gym: Must specify at least one'),
  ],
)
def test_mistakes_are_one_line(tmp_path, task, message):
  with pytest.raises(ConfigError, match=message):
    source(tmp_path, path=f'reasoning_gym/{task}')


def test_no_package_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
  monkeypatch.delitem(sys.modules, 'gft_jax.data.gym')
  monkeypatch.delattr(data, 'gym')
  with pytest.raises(ConfigError, match='pip install reasoning-gym'):
    source(tmp_path, path='reasoning_gym/chain_sum')
