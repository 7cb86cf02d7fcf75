"""Given answers of a dataset against the reward of a run."""

import json

import pytest

from gft_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  RewardConfig,
  override,
)
from gft_jax.evaluation import given_answers
from gft_jax.rewards.grader import Grader
from gft_jax.rewards.tally import RewardError

RIGHT, WRONG = '1+1=2#2', '1+1=3#3'


def config(tmp_path, rows, function='arithmetic', first=0):
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  data = DataConfig(
    path=str(path), eval_path=str(path), cache=str(tmp_path / 'c'), rows=first
  )
  reward = RewardConfig(function=function, workers=0, model='m')
  return Config(data=data, reward=reward)


def row(expert, *teachers):
  found = {'prompt': '1+1:', 'answer': '2', 'expert': expert}
  return found | ({'teacher': list(teachers)} if teachers else {})


def test_each_role_is_graded_by_row(tmp_path):
  rows = [row(RIGHT, RIGHT, '#2'), row(WRONG), row(RIGHT, WRONG, '?')]
  found = given_answers.grade_given(config(tmp_path, rows), 'train')
  assert found['expert'] == (3, 2 / 3, {}, {0: 1, 1: 2}, [2])
  assert found['teacher'] == (4, 0.5, {'parse': 1}, {0: 1, 1: 0, 2: 1}, [3])
  # Row 2 gives no teacher's answer, so it is in no count.
  assert sum(found['teacher'].rows_by_passes.values()) == 2


def test_a_role_without_answers_is_absent(tmp_path):
  found = given_answers.grade_given(config(tmp_path, [row(RIGHT)] * 2), 'train')
  assert list(found) == ['expert']


@pytest.mark.parametrize(
  ('threshold', 'function', 'rate'),
  [
    # The first part decides, not a sum that may reach 1 without it.
    (1.0, 'arithmetic + exact', 0.5),
    (1.0, '0.1 * arithmetic', 0.5),
    (0.0, 'arithmetic', 1.0),
    (1.5, '2 * arithmetic', 0.0),
  ],
)
def test_answers_are_right_as_in_evaluations(
  tmp_path, threshold, function, rate
):
  settings = config(tmp_path, [row(RIGHT), row(WRONG)], function)
  settings = override(settings, f'eval.threshold={threshold}')
  found = given_answers.grade_given(settings, 'train')
  assert found['expert'].pass_rate == rate


def test_data_rows_limits_what_is_graded(tmp_path):
  rows = [row(RIGHT), row(WRONG), row(WRONG)]
  found = given_answers.grade_given(config(tmp_path, rows, first=1), 'train')
  assert found['expert'].answers == 1 and found['expert'].pass_rate == 1


def test_chunks_do_not_change_the_grades(tmp_path, monkeypatch):
  rows = [row(RIGHT, RIGHT, WRONG), row(WRONG, '#2', '?', RIGHT)] * 3
  settings = config(tmp_path, rows)
  whole = given_answers.grade_given(settings, 'train')
  monkeypatch.setattr(given_answers, 'CHUNK', 4)
  assert given_answers.grade_given(settings, 'train') == whole


def test_a_reward_model_grades_no_given_answers(tmp_path):
  settings = config(tmp_path, [row(RIGHT)], 'model')
  for call in (
    lambda: given_answers.check_reward(settings.reward),
    lambda: given_answers.grade_given(settings, 'train'),
  ):
    with pytest.raises(ConfigError, match='graded by functions of text'):
      call()


def test_rows_of_ones_own():
  rows = [{'row': 7, 'prompt': '', 'answer': '2'}] * 2
  with Grader(RewardConfig(function='exact', workers=0)) as grader:
    found = given_answers.grade(grader, rows, [['2'], ['3']])
  assert found == (2, 0.5, {}, {0: 1, 1: 1}, [7])


def test_a_reward_gets_the_columns_of_each_row(tmp_path):
  rows = [row(RIGHT) | {'unit': unit} for unit in ('m', 'kg', 'm')]
  found = given_answers.grade_given(
    config(tmp_path, rows, 'brought_rewards:unit'), 'train'
  )
  assert found['expert'].rows_without_pass == [2]


def test_a_reward_that_fails_for_every_answer_is_refused(tmp_path):
  settings = config(tmp_path, [row(RIGHT)] * 3, 'brought_rewards:undefined')
  with pytest.raises(RewardError, match='all 3 answers of the expert answers'):
    given_answers.grade_given(settings, 'train')
  settings = config(tmp_path, [row(RIGHT)] * 3, 'brought_rewards:unit')
  with pytest.raises(ConfigError, match="takes 'unit'"):
    given_answers.grade_given(settings, 'train')
