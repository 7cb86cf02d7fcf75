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
    ('prompt=', 'no column for the prompt among question, answer; did'),
    ('answer=,expert=', 'no column for the answer among question, answer'),
    ('answer=question,answer=', "role answer twice: 'question' and ''"),
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


@pytest.mark.parametrize(
  'row, columns, expected',
  [
    (
      {'ask': 'p', 'answer': '1', 'solution': 's', 'teacher': ['t']},
      'prompt=ask',
      {
        'prompt': 'ask',
        'answer': 'answer',
        'expert': 'solution',
        'teacher': 'teacher',
      },
    ),
    (
      {'problem': 'p', 'solution': 's', 'gold': '1'},
      'answer=gold',
      {'prompt': 'problem', 'answer': 'gold', 'expert': 'solution'},
    ),
    # A column that is named for one role is not guessed for another.
    (
      {'question': 'p', 'answer': 'x', 'teacher': ['t']},
      'expert=answer',
      {'prompt': 'question', 'expert': 'answer', 'teacher': 'teacher'},
    ),
    (
      {'prompt': 'p', 'completion': 'c', 'messages': []},
      'teacher=,expert=completion',
      {'prompt': 'prompt', 'expert': 'completion'},
    ),
    (
      {'problem': 'p', 'answer': '1', 'teacher': ['t']},
      'teacher=',
      {'prompt': 'problem', 'answer': 'answer'},
    ),
    (
      {'instruction': 'p', 'input': 'i', 'output': 'o'},
      'prompt=instruction',
      {'prompt': 'instruction', 'expert': 'output', 'input': 'input'},
    ),
    (
      {'instruction': 'p', 'input': 'i', 'output': 'o'},
      'prompt=instruction,input=',
      {'prompt': 'instruction', 'expert': 'output'},
    ),
    (
      {'prompt': 'p', 'answer': 'a long solution', 'ground_truth': '2'},
      '',
      {'prompt': 'prompt', 'answer': 'ground_truth'},
    ),
  ],
)
def test_a_map_for_some_roles_leaves_the_others_to_be_guessed(
  tmp_path, row, columns, expected
):
  path = write(tmp_path / 'a.jsonl', row)
  assert column_map(path, columns) == expected


@pytest.mark.parametrize(
  'row, columns',
  [
    ({'a': 'one', 'b': 'two'}, 'teacher=a,teacher=b'),
    ({'a': ['one'], 'b': ['two']}, 'teacher=a, teacher=b'),
    ({'n': {'a': 'one'}, 'b': ['two']}, 'teacher=n.a,teacher=b'),
    ({'teacher_1': 'one', 'Teacher 2': 'two'}, ''),
    ({'solution': 'one', 'b': 'two'}, 'teacher=solution,teacher=b'),
    ({'teacher': ['one'], 'teacher2': 'two'}, ''),
  ],
)
def test_several_columns_are_several_teachers(tmp_path, row, columns):
  path = write(tmp_path / 'a.jsonl', {**GOOD, **row})
  ((_, found),) = files.rows(path, column_map(path, columns))
  assert found['teacher'] == ['one', 'two']
  assert 'left_out' not in found


TALK = [
  {'role': 'user', 'content': 'a'},
  {'role': 'assistant', 'content': 'b'},
]


@pytest.mark.parametrize(
  'row, expected',
  [
    # A target is the answer where it is a text and nothing else is.
    (
      {'prompt': 'p', 'target': '1'},
      {'prompt': 'prompt', 'answer': 'target'},
    ),
    (
      {'prompt': 'p', 'target': TALK[1:]},
      {'prompt': 'prompt', 'expert': 'target'},
    ),
    (
      {'prompt': 'p', 'target': 's', 'ground_truth': '1'},
      {'prompt': 'prompt', 'answer': 'ground_truth', 'expert': 'target'},
    ),
    (
      {'question': 'p', 'answer': 's #### 1', 'target': '1'},
      {'prompt': 'question', 'answer': 'target', 'expert': 'answer'},
    ),
    (
      {' Question ': 'p', 'Final-Answer': '1', 'SOLUTION': 's'},
      {'prompt': ' Question ', 'answer': 'Final-Answer', 'expert': 'SOLUTION'},
    ),
    # A column with something in it, rather than one without.
    (
      {'prompt': None, 'problem': 'p', 'answer': '1'},
      {'prompt': 'problem', 'answer': 'answer'},
    ),
    # The expert stands in the conversation alone.
    (
      {'question': 'a', 'answer': '1', 'messages': TALK},
      {'messages': 'messages', 'answer': 'answer'},
    ),
    (
      {'question': 'a', 'solution': 'b', 'messages': TALK},
      {'prompt': 'question', 'expert': 'solution'},
    ),
    (
      {'question': 'a', 'context': 'c', 'answer': '1'},
      {'prompt': 'question', 'answer': 'answer'},
    ),
  ],
)
def test_what_a_column_holds_counts_beside_its_name(tmp_path, row, expected):
  path = write(tmp_path / 'a.jsonl', row)
  assert column_map(path, '') == expected


@pytest.mark.parametrize(
  'row, columns, message',
  [
    (
      {'ask': 'p', 'expected_answer': '1'},
      '',
      'no column for the prompt among ask, expected_answer, and none for the'
      ' answer; did you mean expected_answer? set'
      ' data.columns=prompt=NAME,answer=expected_answer',
    ),
    (
      {'x': 'p', 'y': '1'},
      '',
      'no column for the prompt among x, y, and none for the answer; set'
      ' data.columns=prompt=NAME,answer=NAME',
    ),
    (
      {'problems': 'p', 'worked_solution': 's'},
      '',
      'no column for the prompt among problems, worked_solution, and none for'
      ' the answer; did you mean problems, worked_solution? set'
      ' data.columns=prompt=problems,expert=worked_solution',
    ),
    (
      {'question': 'p', 'solution': '1', 'x': ''},
      'prompt=questin,expert=solutions,teacher=t',
      "no column 'questin', 'solutions', 't'; columns: question, solution, x;"
      ' did you mean question, solution? set'
      ' data.columns=prompt=question,expert=solution,teacher=NAME',
    ),
    (
      {'question': 'p', 'x': '1'},
      'prompt=questin',
      "no column 'questin', and no column for the answer among question, x;"
      ' did you mean question? set'
      ' data.columns=prompt=question,answer=NAME',
    ),
  ],
)
def test_all_that_is_missing_is_said_at_once(tmp_path, row, columns, message):
  path = write(tmp_path / 'a.jsonl', row)
  with pytest.raises(ConfigError) as caught:
    column_map(path, columns)
  assert str(caught.value) == f'{path}: {message}'


def test_a_name_that_is_only_somewhat_alike_is_not_offered(tmp_path):
  path = write(tmp_path / 'a.jsonl', {'text': 'p'})
  with pytest.raises(ConfigError, match=r'for the answer; set data\.columns='):
    column_map(path, '')


def test_preferences_in_one_text_are_refused(tmp_path):
  path = write(tmp_path / 'a.jsonl', {'chosen': 'q: a', 'rejected': 'q: b'})
  with pytest.raises(ConfigError, match='split the prompt off chosen and rej'):
    column_map(path, '')


def test_answers_that_are_labelled_are_no_expert_s(tmp_path):
  row = {'prompt': 'p', 'completion': 'c', 'label': False}
  path = write(tmp_path / 'a.jsonl', row)
  with pytest.raises(ConfigError, match='label says which answers are good'):
    column_map(path, '')
  assert column_map(path, 'expert=completion')['expert'] == 'completion'
  write(path, {**row, 'answer': '1'})
  assert 'expert' not in column_map(path, 'expert=')


def test_a_file_that_is_asked_needs_no_expert(tmp_path):
  path = write(tmp_path / 'a.jsonl', {'q': 'p', 'answer': '1'})
  columns = 'prompt=q,expert=solution,teacher=a,teacher=b'
  with pytest.raises(ConfigError, match="no column 'solution', 'a', 'b'"):
    column_map(path, columns)
  expected = {'prompt': 'q', 'answer': 'answer'}
  assert column_map(path, columns, asked_only=True) == expected
  for missing in ('prompt=r', 'answer=gold'):
    with pytest.raises(ConfigError, match='no column'):
      column_map(path, missing, asked_only=True)
