"""Which column is which: named, guessed, or an error of one line."""

import json

import pytest

from gft_jax.config import ConfigError
from gft_jax.data import files
from gft_jax.data.columns import column_map

GOOD = {'prompt': 'p', 'answer': '1'}


def write(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@pytest.mark.parametrize(
  'row, expected',
  [
    (
      {'question': '1+1?', 'answer': 'two\n#### 2'},
      {'prompt': 'question', 'expert': 'answer'},
    ),
    (
      {'question': '1+1?', 'answer': '2'},
      {'prompt': 'question', 'answer': 'answer'},
    ),
    (
      {'problem': 'p', 'solution': 's', 'answer': '#### is a mark', 'x': 1},
      {'prompt': 'problem', 'expert': 'solution', 'answer': 'answer'},
    ),
    (
      {'prompt': 'p', 'completion': 'c #### 1', 'model_answer': ['a']},
      {'prompt': 'prompt', 'expert': 'completion', 'teacher': 'model_answer'},
    ),
  ],
)
def test_columns_are_guessed(tmp_path, row, expected):
  path = write(tmp_path / 'a.jsonl', row)
  assert column_map(path, '') == expected


def test_a_column_may_be_missing_in_the_first_row(tmp_path):
  path = write(tmp_path / 'a.jsonl', GOOD, {**GOOD, 'teacher': ['t']})
  columns = column_map(path, '')
  assert columns['teacher'] == 'teacher'
  found = [row['teacher'] for _, row in files.rows(path, columns)]
  assert found == [[], ['t']]


def test_columns_are_named(tmp_path):
  path = write(tmp_path / 'a.jsonl', {'q': '1+1?', 'a': 'two #### 2', 't': []})
  columns = column_map(path, 'prompt=q, expert=a,teacher=t')
  assert columns == {'prompt': 'q', 'expert': 'a', 'teacher': 't'}
  assert list(files.rows(path, columns)) == [
    (
      1,
      {'prompt': '1+1?', 'answer': '2', 'expert': 'two #### 2', 'teacher': []},
    )
  ]


@pytest.mark.parametrize(
  'columns, message',
  [
    ('prompt=questin', "no column 'questin'; columns: question, answer; did"),
    ('promt=question', "'promt=question' is not role=column.*did you mean pr"),
    ('question', "'question' is not role=column"),
    ('prompt=question,prompt=answer', "role prompt twice: 'question' and 'ans"),
    ('answer=answer', 'no column for the prompt among question, answer'),
    ('prompt=question', 'no column for the answer among question, answer'),
  ],
)
def test_wrong_columns_are_named(tmp_path, columns, message):
  path = write(tmp_path / 'a.jsonl', {'question': '1+1?', 'answer': '2'})
  with pytest.raises(ConfigError, match=message):
    column_map(path, columns)


def test_a_dot_leads_into_a_nested_column(tmp_path):
  raw = {'q': {'text': 'p'}, 'a.b': 'e', 'reward_model': {'ground_truth': 7}}
  path = write(tmp_path / 'a.jsonl', raw, {**raw, 'reward_model': None})
  columns = column_map(
    path, 'prompt=q.text,expert=a.b,answer=reward_model.ground_truth'
  )
  (_, good), (_, bad) = files.rows(path, columns)
  assert (good['prompt'], good['expert'], good['answer']) == ('p', 'e', '7')
  assert str(bad) == 'answer is missing'
  with pytest.raises(ConfigError, match='did you mean reward_model'):
    column_map(path, 'prompt=q.text,answer=reward_model.groundtruth')


def test_messages_stand_alone_in_a_column_map(tmp_path):
  chat = [
    {'role': 'user', 'content': 'a'},
    {'role': 'assistant', 'content': 'b'},
  ]
  path = write(tmp_path / 'a.jsonl', {'chat': chat, 'q': 'c'})
  columns = column_map(path, 'messages=chat')
  ((_, row),) = files.rows(path, columns)
  assert (row['prompt'], row['expert']) == ('a', 'b')
  with pytest.raises(ConfigError, match='messages holds the prompt and the'):
    column_map(path, 'messages=chat,prompt=q')
