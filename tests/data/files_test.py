"""Files as users have them: every defect is one line, never a traceback."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gft_jax.config import ConfigError
from gft_jax.data import files

GOOD = {'prompt': 'p', 'answer': '1'}


def write(path, *rows):
  lines = [row if isinstance(row, bytes) else _line(row) for row in rows]
  path.write_bytes(b'\n'.join(lines) + b'\n')
  return path


def _line(row):
  return json.dumps(row).encode()


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
  assert files.column_map(path, '') == expected


def test_a_column_may_be_missing_in_the_first_row(tmp_path):
  path = write(tmp_path / 'a.jsonl', GOOD, {**GOOD, 'teacher': ['t']})
  columns = files.column_map(path, '')
  assert columns['teacher'] == 'teacher'
  found = [row['teacher'] for _, row in files.rows(path, columns)]
  assert found == [[], ['t']]


def test_columns_are_named(tmp_path):
  path = write(tmp_path / 'a.jsonl', {'q': '1+1?', 'a': 'two #### 2', 't': []})
  columns = files.column_map(path, 'prompt=q, expert=a,teacher=t')
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
    ('answer=answer', 'no column for the prompt among question, answer'),
    ('prompt=question', 'no column for the answer among question, answer'),
  ],
)
def test_wrong_columns_are_named(tmp_path, columns, message):
  path = write(tmp_path / 'a.jsonl', {'question': '1+1?', 'answer': '2'})
  with pytest.raises(ConfigError, match=message):
    files.column_map(path, columns)


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('none.jsonl', None, 'none.jsonl does not exist; did you mean nine.jsonl'),
    ('a.csv', b'prompt,answer\n', 'neither .jsonl nor .parquet'),
    ('a.jsonl', b'', 'has no rows'),
    ('a.jsonl', b'not json\n[1]\n', 'has no rows'),
    ('a.jsonl', b'{"text": "x"}\n', 'no column for the prompt among text'),
    ('a.parquet', b'PAR1 no', 'a.parquet is not a parquet file'),
    ('a.parquet', b'', 'a.parquet is not a parquet file'),
  ],
)
def test_malformed_files_are_one_line(tmp_path, name, content, message):
  (tmp_path / 'nine.jsonl').touch()
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(ConfigError, match=message) as caught:
    files.column_map(tmp_path / name, '')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'row, reason',
  [
    ({'answer': '1'}, 'prompt is missing'),
    ({'prompt': None, 'answer': '1'}, 'prompt is missing'),
    ({'prompt': ' \n', 'answer': '1'}, 'prompt is empty'),
    ({'prompt': 'p', 'answer': ''}, 'answer is empty'),
    ({'prompt': ['p'], 'answer': '1'}, 'prompt is a list, not text'),
    ({'prompt': 7, 'answer': '1'}, 'prompt is a int, not text'),
    ({'prompt': 'p', 'answer': True}, 'answer is a bool, not text'),
    ({**GOOD, 'teacher': 'one'}, 'teacher is a str, not a list'),
    ({**GOOD, 'teacher': ['one', None]}, 'teacher is missing'),
    ({**GOOD, 'teacher': [1]}, 'teacher is a int, not text'),
    ({'prompt': '\ud800', 'answer': '1'}, 'prompt is not UTF-8'),
    (b'{"prompt": "\xff", "answer": "1"}', 'is not UTF-8'),
    (b'{"prompt": "p", ', 'is not JSON'),
    (b'[' * 100_000, 'is not JSON'),
    (b'"p"', 'is not a JSON object'),
  ],
)
def test_bad_rows_are_named(tmp_path, row, reason):
  path = write(tmp_path / 'a.jsonl', {**GOOD, 'teacher': []}, row, GOOD)
  found = list(files.rows(path, files.column_map(path, '')))
  assert [number for number, _ in found] == [1, 2, 3]
  assert isinstance(found[1][1], files.BadRow)
  assert str(found[1][1]) == reason
  assert found[0][1] == found[2][1]


def test_what_is_read_as_it_is(tmp_path):
  path = write(
    tmp_path / 'a.jsonl',
    b'\xef\xbb\xbf{"prompt": "p", "answer": 27.0, "teacher": null}',
    b'',
    {'prompt': ' p\n', 'answer': 2.5},
    {'prompt': 'p', 'answer': -3},
  )
  rows = [row for _, row in files.rows(path, files.column_map(path, ''))]
  assert [row['answer'] for row in rows] == ['27', '2.5', '-3']
  assert rows[0]['teacher'] == rows[1]['teacher'] == []
  assert rows[1]['prompt'] == ' p\n'


def test_final_answers():
  assert files.final_answer('so 1 #### 2\n#### 70,000 ') == '70000'
  with pytest.raises(files.BadRow, match='no ####'):
    files.final_answer('The answer is 4.')


def test_parquet_equals_jsonl(tmp_path):
  rows = [
    {'prompt': 'ä', 'answer': '1', 'expert': 'e', 'teacher': ['t', 'u']},
    {'prompt': 'b', 'answer': '2', 'expert': 'f', 'teacher': []},
    {'prompt': 'c', 'answer': None, 'expert': 'g', 'teacher': None},
  ]
  jsonl = write(tmp_path / 'a.jsonl', *rows)
  table = pa.Table.from_pylist(rows)
  pq.write_table(table, tmp_path / 'a.parquet', row_group_size=2)
  columns = files.column_map(jsonl, '')
  assert files.column_map(tmp_path / 'a.parquet', '') == columns
  one, other = (
    [
      (number, str(row) if isinstance(row, files.BadRow) else row)
      for number, row in files.rows(path, columns)
    ]
    for path in (jsonl, tmp_path / 'a.parquet')
  )
  assert one == other and one[2] == (3, 'answer is missing')


def test_parquet_text_that_is_not_utf8_spoils_its_row_only(tmp_path):
  text = pa.Array.from_buffers(
    pa.string(),
    2,
    [None, pa.py_buffer(b'\0\0\0\0\1\0\0\0\2\0\0\0'), pa.py_buffer(b'p\xff')],
  )
  table = pa.table({'prompt': text, 'answer': [1, 2]})
  pq.write_table(table, tmp_path / 'a.parquet')
  path = tmp_path / 'a.parquet'
  found = dict(files.rows(path, files.column_map(path, '')))
  assert found[1]['prompt'] == 'p'
  assert str(found[2]) == 'prompt is not UTF-8'


def test_every_row_of_gsm8k_is_read(shared):
  path = pathlib.Path(shared / 'data/gsm8k/train.parquet')
  rows = list(files.rows(path, files.column_map(path, '')))
  assert len(rows) == 7473
  for _, row in rows:
    assert not isinstance(row, files.BadRow)
    # Text verbatim, the answer a plain number.
    assert row['expert'].endswith(row['expert'].split('####')[-1])
    assert float(row['answer']) == float(
      row['expert'].split('#### ')[1].replace(',', '')
    )
    assert ',' not in row['answer']
