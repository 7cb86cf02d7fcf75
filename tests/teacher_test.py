"""Rows with teacher answers, as they are written."""

import collections
import json
import types

import numpy as np
import pytest

from gft_jax import teacher
from gft_jax.config import RewardConfig
from gft_jax.data import files
from gft_jax.data.columns import column_map
from gft_jax.rewards.grader import Grader
from gft_jax.rewards.tally import RewardError, Tally


def test_conversations_come_out_as_they_went_in(tmp_path):
  source, out = tmp_path / 'a.jsonl', tmp_path / 'b.jsonl'
  turns = [
    {'role': role, 'content': role[:3]}
    for role in ('system', 'user', 'assistant', 'user', 'assistant')
  ]
  source.write_text(
    json.dumps({'prompt': turns[:2], 'answer': '1', 'expert': turns[2:]})
    + '\n'
    + json.dumps({'prompt': 'p', 'answer': '2', 'expert': 'e'})
    + '\n'
  )
  rows = dict(files.rows(source, column_map(source, '')))
  out.write_bytes(b''.join(teacher.line(row, ['ä']) for row in rows.values()))
  again = dict(files.rows(out, column_map(out, '')))
  assert again == {i: row | {'teacher': ['ä']} for i, row in rows.items()}
  assert [t['role'] for t in again[1]['prompt_turns']] == ['system', 'user']


def test_answers_that_may_not_teach_are_counted():
  left_out = collections.Counter()
  kept = teacher.kept(
    [['a', 'b', ' \n'], ['c', 'd', 'e']],
    np.array([[True, False, True], [True, True, True]]),
    np.array([[1.0, 1.0, 1.0], [0.0, 0.5, 2.0]]),
    left_out,
  )
  assert kept == [['a'], ['e']]
  lower = teacher.kept(
    [['c', 'd', 'e']],
    np.ones((1, 3), bool),
    np.array([[0.0, 0.5, 2.0]]),
    collections.Counter(),
    0.5,
  )
  assert lower == [['d', 'e']]
  assert left_out == {'cut at --max-tokens': 1, 'empty': 1, 'wrong': 2}


def test_columns_of_the_reward_stay_for_the_run_that_trains_on_them(tmp_path):
  row = {'prompt': 'p', 'answer': '2', 'expert': ''}
  taken = json.dumps({'unit': 'm', 'answer': 'two', 'prompts': [{}]})
  written = json.loads(teacher.line(row, ['a'], taken))
  assert written == {
    'prompt': 'p',
    'answer': '2',
    'teacher': ['a'],
    'unit': 'm',
  }


@pytest.mark.parametrize(
  'function, message',
  [('undefined', 'NameError'), ('returned', "KeyError: 'a'")],
)
def test_a_broken_reward_leaves_no_teacher_out_as_wrong(function, message):
  examples = types.SimpleNamespace(prompts=['p'], answers=['a'], columns=[])
  settings = RewardConfig(function=f'brought_rewards:{function}')
  tally, told = Tally(), set()
  with Grader(settings) as grader, pytest.raises(RewardError, match=message):
    teacher.grade(grader, examples, [['a', 'b']], tally, told)
