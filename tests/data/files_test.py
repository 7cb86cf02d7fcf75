"""Files as users have them: every defect is one line, never a traceback."""

import csv
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gft_jax.config import ConfigError
from gft_jax.data import files
from gft_jax.data.columns import column_map

GOOD = {'prompt': 'p', 'answer': '1'}


def write(path, *rows):
  lines = [row if isinstance(row, bytes) else _line(row) for row in rows]
  path.write_bytes(b'\n'.join(lines) + b'\n')
  return path


def _line(row):
  return json.dumps(row).encode()


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('none.jsonl', None, 'none.jsonl does not exist; did you mean nine.jsonl'),
    ('a.tsv', b'prompt\tanswer\n', 'neither .jsonl nor .json nor .csv nor'),
    ('a.csv', b'', 'has no rows'),
    ('a.csv', b'prompt,answer\n', 'has no rows'),
    ('a.csv', b'prompt,prompt\n1,2\n', 'has two columns prompt'),
    ('a.json', b'{"prompt": "p"}', 'a.json is not a list of JSON objects'),
    ('a.json', b'[{"prompt": "p"}', 'a.json is not JSON'),
    ('a.json', b'[{"a": 1, "a": 2}]', "a.json has the key 'a' twice"),
    ('a.json', b'["p"]', 'no rows that can be read; row 1 is not a JSON obj'),
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
    column_map(tmp_path / name, '')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'row, reason',
  [
    ({'answer': '1'}, 'prompt is missing'),
    ({'prompt': None, 'answer': '1'}, 'prompt is missing'),
    ({'prompt': ' \n', 'answer': '1'}, 'prompt is empty'),
    ({'prompt': 'p', 'answer': ''}, 'answer is empty'),
    (
      {'prompt': ['p'], 'answer': '1'},
      'prompt: turn 1 is a str, not an object',
    ),
    (
      {'prompt': 'p' * 10_000_000, 'answer': '1'},
      'prompt is longer than 4,000',
    ),
    (
      b'{"prompt": "p", "answer": 1, "answer": 2}',
      "has the key 'answer' twice",
    ),
    (b'{"prompt": {"a": 1, "a": 2}, "answer": 1}', "has the key 'a' twice"),
    ({'prompt': 7, 'answer': '1'}, 'prompt is a int, not text'),
    ({'prompt': 'p', 'answer': True}, 'answer is a bool, not text'),
    ({'prompt': '\ud800', 'answer': '1'}, 'prompt is not UTF-8'),
    (b'{"prompt": "\xff", "answer": "1"}', 'is not UTF-8'),
    (b'{"prompt": "p", ', 'is not JSON'),
    (b'[' * 100_000, 'is not JSON'),
    (b'"p"', 'is not a JSON object'),
  ],
)
def test_bad_rows_are_named(tmp_path, row, reason):
  path = write(tmp_path / 'a.jsonl', {**GOOD, 'teacher': []}, row, GOOD)
  found = list(files.rows(path, column_map(path, '')))
  assert [number for number, _ in found] == [1, 2, 3]
  assert isinstance(found[1][1], files.BadRow)
  assert str(found[1][1]).startswith(reason)
  assert found[0][1] == found[2][1]


def test_what_is_read_as_it_is(tmp_path):
  path = write(
    tmp_path / 'a.jsonl',
    b'\xef\xbb\xbf{"prompt": "p", "answer": 27.0, "teacher": null}',
    b'',
    {'prompt': ' p\n', 'answer': 2.5},
    {'prompt': 'p', 'answer': -3},
  )
  rows = [row for _, row in files.rows(path, column_map(path, ''))]
  assert [row['answer'] for row in rows] == ['27', '2.5', '-3']
  assert rows[0]['teacher'] == rows[1]['teacher'] == []
  assert rows[1]['prompt'] == ' p\n'


@pytest.mark.parametrize(
  'expert, answer',
  [
    ('so 1 #### 2\n#### 70,000 ', '70000'),
    ('The answer is 4.', ''),
    (r'Thus $x = \boxed{\frac{1}{2}}$.', r'\frac{1}{2}'),
    (r'\boxed{1} or rather \boxed{2}.', '2'),
    (r'\boxed{ \{1, 2\} } and a stray } { brace', r'\{1, 2\}'),
    (r'\boxed{7}, and \boxed{8 without an end', '7'),
    (r'\boxed{a \boxed{b}}', r'a \boxed{b}'),
    # A heading of Markdown is no answer.
    ('#### Step 1\nWe add.\n#### Step 2\nSo \\boxed{1,000}.', '1,000'),
    ('#### Step 1\nWe add to get 3.', ''),
    (r'#### So \boxed{3}', '3'),
    (r'<think>\boxed{1}</think> so <answer> 2 </answer> #### 3', '2'),
    (r'<think>\boxed{1}</think> so it is', ''),
    (r'<think>\boxed{1}', ''),
  ],
)
def test_final_answers(expert, answer):
  assert files.final_answer(expert) == answer


@pytest.mark.timeout(120)  # A second scan for each takes hours.
def test_a_final_answer_is_found_in_linear_time():
  assert files.final_answer(r'\boxed{' * 300_000) == ''


def turns(*contents):
  """user, assistant, user, ..."""
  return [
    {'role': ('user', 'assistant')[i % 2], 'content': content}
    for i, content in enumerate(contents)
  ]


SYSTEM = {'role': 'system', 'content': 'Be terse.'}
VERL = {
  'data_source': 'numina',
  'prompt': [{'role': 'user', 'content': 'What is 6 / 2? Think.'}],
  'ability': 'math',
  'reward_model': {'style': 'rule', 'ground_truth': '3'},
  'extra_info': {
    'split': 'train',
    'index': 0,
    'question': 'What is 6 / 2?',
    'answer': r'It is \boxed{3}.',
    'model_answer': ['Three.', '3'],
  },
}
MATH = {
  'problem': 'What is 6 / 2?',
  'level': 'Level 1',
  'type': 'Algebra',
  'solution': r'It is $\boxed{3}$.',
}
# As their publishers name the columns.
SHAPES = {
  'verl': (
    VERL,
    {
      'prompt': 'What is 6 / 2? Think.',
      'answer': '3',
      'expert': r'It is \boxed{3}.',
      'teacher': ['Three.', '3'],
    },
  ),
  'verl, with a system turn': (
    {**VERL, 'prompt': [SYSTEM, *VERL['prompt']]},
    {
      'prompt': 'What is 6 / 2? Think.',
      'prompt_turns': [SYSTEM, *VERL['prompt']],
      'answer': '3',
      'expert': r'It is \boxed{3}.',
      'teacher': ['Three.', '3'],
    },
  ),
  'NuminaMath-CoT': (
    {
      'source': 'olympiads',
      'problem': 'What is 6 / 2?',
      'solution': r'#### Step 1' + '\n' + r'It is $\boxed{3}$.',
      'messages': turns('What is 6 / 2?', 'three'),
    },
    {
      'prompt': 'What is 6 / 2?',
      'answer': '3',
      'expert': '#### Step 1\n' + r'It is $\boxed{3}$.',
      'teacher': [],
    },
  ),
  'MATH': (
    MATH,
    {
      'prompt': 'What is 6 / 2?',
      'answer': '3',
      'expert': r'It is $\boxed{3}$.',
      'teacher': [],
    },
  ),
  'a proof': (
    {**MATH, 'solution': 'It is evident.'},
    {
      'prompt': 'What is 6 / 2?',
      'answer': '',
      'expert': 'It is evident.',
      'teacher': [],
    },
  ),
  'GSM8K': (
    {'question': 'How many?', 'answer': '3 x 2,000 is 6,000.\n#### 6,000'},
    {
      'prompt': 'How many?',
      'answer': '6000',
      'expert': '3 x 2,000 is 6,000.\n#### 6,000',
      'teacher': [],
    },
  ),
  'TRL, prompt and completion': (
    {'prompt': 'What is 6 / 2?', 'completion': r'\boxed{3}'},
    {
      'prompt': 'What is 6 / 2?',
      'answer': '3',
      'expert': r'\boxed{3}',
      'teacher': [],
    },
  ),
  'TRL, prompt and completion of turns': (
    {
      'prompt': [SYSTEM, *turns('What is 6 / 2?')],
      'completion': turns('', r'\boxed{3}')[1:],
    },
    {
      'prompt': 'What is 6 / 2?',
      'prompt_turns': [SYSTEM, *turns('What is 6 / 2?')],
      'answer': '3',
      'expert': r'\boxed{3}',
      'teacher': [],
    },
  ),
  'TRL, prompt and answer': (
    {'prompt': turns('What is 6 / 2?'), 'answer': 3},
    {'prompt': 'What is 6 / 2?', 'answer': '3', 'expert': '', 'teacher': []},
  ),
  'TRL, messages of one answer': (
    {'messages': turns('What is 6 / 2?', r'\boxed{3}')},
    {
      'prompt': 'What is 6 / 2?',
      'answer': '3',
      'expert': r'\boxed{3}',
      'teacher': [],
    },
  ),
  'TRL, messages': (
    {'messages': [SYSTEM, *turns('1 + 1?', '2', 'And 2 + 2?', '#### 4')]},
    {
      'prompt': '1 + 1?',
      'prompt_turns': [SYSTEM, *turns('1 + 1?')],
      'answer': '4',
      'expert': '#### 4',
      'expert_turns': turns('1 + 1?', '2', 'And 2 + 2?', '#### 4')[1:],
      'teacher': [],
    },
  ),
}


@pytest.mark.parametrize('kind', ['jsonl', 'json', 'parquet'])
@pytest.mark.parametrize('name', SHAPES)
def test_public_shapes_need_no_column_map(tmp_path, name, kind):
  raw, expected = SHAPES[name]
  path = tmp_path / f'a.{kind}'
  if kind == 'parquet':
    pq.write_table(pa.Table.from_pylist([raw, raw]), path)
  elif kind == 'json':
    path.write_text(json.dumps([raw, raw], indent=1))
  else:
    write(path, raw, raw)
  found = list(files.rows(path, column_map(path, '')))
  assert found == [(1, expected), (2, expected)]


@pytest.mark.parametrize(
  'messages, reason',
  [
    (None, 'messages is missing'),
    ([], 'messages is empty'),
    ('hello', 'messages is a str, not a list of turns'),
    (['hello'], 'messages: turn 1 is a str, not an object'),
    ([{'content': 'a'}], 'messages: turn 1 has no role'),
    (
      [{'role': 'robot', 'content': 'a'}],
      "messages: turn 1 has the role 'robot', which is not one of system, user,",
    ),
    (
      [{'role': ['user'], 'content': 'a'}],
      'messages: turn 1 has the role "[\'user\']", which is not',
    ),
    (
      [*turns('a'), {'role': 'assistant'}],
      'messages: turn 2: content is missing',
    ),
    (turns('a', ''), 'messages: turn 2: content is empty'),
    (turns('a', 7), 'messages: turn 2: content is a int, not text'),
    (turns('a', '\ud800'), 'messages: turn 2: content is not UTF-8'),
    (turns('a'), 'messages has no turn of the assistant'),
    (turns('a', 'b')[1:], 'messages: the assistant speaks before the user'),
    (
      [SYSTEM, *turns('a', 'b')[1:]],
      'messages: the assistant speaks before the user',
    ),
    (turns('a', 'b', 'c'), 'expert ends with the user, not the assistant'),
  ],
)
def test_bad_conversations_are_named(tmp_path, messages, reason):
  good = {'messages': turns('a', 'b')}
  path = write(tmp_path / 'a.jsonl', good, {'messages': messages}, good)
  found = list(files.rows(path, column_map(path, '')))
  assert isinstance(found[1][1], files.BadRow)
  assert str(found[1][1]).startswith(reason)
  assert found[0][1] == found[2][1]


@pytest.mark.parametrize(
  'row, reason',
  [
    (
      {'prompt': turns('a', 'b'), 'completion': 'c'},
      'prompt ends with the assistant, not the user',
    ),
    (
      {'prompt': turns('a'), 'completion': turns('b')},
      'expert begins with the user, not the assistant',
    ),
  ],
)
def test_bad_halves_of_conversations_are_named(tmp_path, row, reason):
  path = write(tmp_path / 'a.jsonl', row)
  ((_, bad),) = files.rows(path, column_map(path, ''))
  assert str(bad) == reason


def test_csv_is_read_as_it_is(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_bytes(
    b'\xef\xbb\xbfquestion,answer,teacher\r\n'
    b'"1+1,\r\n""now""?",2,"[""t"", ""u""]"\r\n'
    b'\r\n'
    b'no teacher,27.0,\r\n'
    b'no answer,,[]\r\n'
    b'too,many,cells,here\r\n'
    b'\xff,3,\r\n'
    b'"a quote"s end,4,\r\n'
    b'[1] + [2]?,"[1, 2]",\r\n'
    + b'long,'
    + b'5' * 200_000
    + b',\r\n"no end,6,\r\n'
  )
  found = dict(files.rows(path, column_map(path, '')))
  assert found[1] == {
    'prompt': '1+1,\r\n"now"?',
    'answer': '2',
    'expert': '',
    'teacher': ['t', 'u'],
  }
  assert found[2]['answer'] == '27.0' and found[2]['teacher'] == []
  assert found[7]['prompt'] == '[1] + [2]?' and found[7]['answer'] == '[1, 2]'
  assert len(found[8]['answer']) == 200_000
  bad = {n: str(row) for n, row in found.items() if not isinstance(row, dict)}
  assert bad == {
    3: 'answer is missing',
    4: 'has 4 cells for 3 columns',
    5: 'prompt is not UTF-8',
    6: "is not CSV: ',' expected after '\"'",
    9: 'is not CSV: unexpected end of data',
  }


def test_messages_in_a_cell_are_json(tmp_path):
  path = tmp_path / 'a.csv'
  with path.open('w', newline='') as file:
    csv.writer(file).writerows(
      [['messages'], [json.dumps(turns('a', 'b'))], ['not json'], ['[1']]
    )
  found = dict(files.rows(path, column_map(path, '')))
  assert (found[1]['prompt'], found[1]['expert']) == ('a', 'b')
  assert str(found[2]) == 'messages is a str, not a list of turns'
  assert str(found[3]) == 'messages is a str, not a list of turns'


def test_parquet_equals_jsonl(tmp_path):
  rows = [
    {'prompt': 'ä', 'answer': '1', 'expert': 'e', 'teacher': ['t', 'u']},
    {'prompt': 'b', 'answer': '2', 'expert': 'f', 'teacher': []},
    {'prompt': 'c', 'answer': None, 'expert': 'g', 'teacher': None},
  ]
  jsonl = write(tmp_path / 'a.jsonl', *rows)
  table = pa.Table.from_pylist(rows)
  pq.write_table(table, tmp_path / 'a.parquet', row_group_size=2)
  columns = column_map(jsonl, '')
  assert column_map(tmp_path / 'a.parquet', '') == columns
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
  found = dict(files.rows(path, column_map(path, '')))
  assert found[1]['prompt'] == 'p'
  assert str(found[2]) == 'prompt is not UTF-8'


def test_nested_text_that_is_not_utf8_spoils_its_row_only(tmp_path):
  raw = [{'messages': turns('a', 'b')}, {'messages': turns('a', 'x')}]
  path = tmp_path / 'a.parquet'
  # Plain pages, so that the text can be spoilt where it lies.
  pq.write_table(
    pa.Table.from_pylist(raw), path, compression='none', use_dictionary=False
  )
  content = path.read_bytes()
  assert content.count(b'\1\0\0\0x') == 1
  path.write_bytes(content.replace(b'\1\0\0\0x', b'\1\0\0\0\xff'))
  found = dict(files.rows(path, column_map(path, '')))
  assert found[1]['expert'] == 'b'
  assert str(found[2]) == 'messages: turn 2: content is not UTF-8'


def test_every_row_of_gsm8k_is_read(shared):
  path = pathlib.Path(shared / 'data/gsm8k/train.parquet')
  rows = list(files.rows(path, column_map(path, '')))
  assert len(rows) == 7473
  for _, row in rows:
    assert not isinstance(row, files.BadRow)
    # Text verbatim, the answer a plain number.
    assert row['expert'].endswith(row['expert'].split('####')[-1])
    assert float(row['answer']) == float(
      row['expert'].split('#### ')[1].replace(',', '')
    )
    assert ',' not in row['answer']


@pytest.mark.parametrize(
  'teacher, texts, reasons',
  [
    (['one', None, 'two'], ['one', 'two'], ['teacher is missing']),
    ([None], [], ['teacher is missing']),
    (['one', ' ', 7], ['one'], ['teacher is empty', 'teacher is a int, not']),
    ('one', ['one'], []),
    ('["one", "two"]', ['one', 'two'], []),
    ("['one', 'two']", [], ["teacher is a list in Python's spelling"]),
    ([[{'role': 'assistant', 'content': 'one'}]], ['one'], []),
    ({'from': 'gpt', 'value': 'one'}, ['one'], []),
    (
      [[{'role': 'user', 'content': 'q'}], 'one'],
      ['one'],
      ['teacher begins with the user'],
    ),
    (7, [], ['teacher is a int, not text']),
  ],
)
def test_a_teacher_that_cannot_be_read_leaves_its_row(
  tmp_path, teacher, texts, reasons
):
  path = write(tmp_path / 'a.jsonl', {**GOOD, 'teacher': teacher})
  ((_, row),) = files.rows(path, column_map(path, ''))
  assert row['teacher'] == texts
  found = row.get('left_out', [])
  assert len(found) == len(reasons)
  assert all(map(str.startswith, found, reasons))


@pytest.mark.parametrize('name', ['a.json', 'a.jsonl', 'A.JSON'])
@pytest.mark.parametrize(
  'content',
  [
    b'{"prompt": "p", "answer": 1}\n{"prompt": "q", "answer": 2}',
    b'\xef\xbb\xbf{"prompt":"p","answer":1}\r\n\r\n{"prompt":"q","answer":2}\r\n',
    b'[{"prompt": "p", "answer": 1}, {"prompt": "q", "answer": 2}]',
    b'\xef\xbb\xbf\r\n[\r\n{"prompt":"p","answer":1},\n{"prompt":"q","answer":2}]',
  ],
)
def test_json_is_known_by_what_it_holds(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content)
  rows = [row for _, row in files.rows(path, column_map(path, ''))]
  assert [(row['prompt'], row['answer']) for row in rows] == [
    ('p', '1'),
    ('q', '2'),
  ]


def test_a_bad_line_of_a_json_file_is_a_bad_row(tmp_path):
  path = tmp_path / 'a.json'
  path.write_bytes(b'{"prompt": "p", "answer": 1}\nnot json\n')
  (_, good), (_, bad) = files.rows(path, column_map(path, ''))
  assert good['answer'] == '1' and str(bad) == 'is not JSON'


@pytest.mark.parametrize('name', ['image', 'images', 'audio'])
def test_a_row_with_more_than_text_is_named(tmp_path, name):
  path = write(
    tmp_path / 'a.jsonl', {**GOOD, name: ['x']}, {**GOOD, name: []}, GOOD
  )
  (_, bad), *good = files.rows(path, column_map(path, ''))
  assert str(bad) == f'has {name}, and only text is read'
  assert all(isinstance(row, dict) for _, row in good)


def test_a_conversation_in_a_cell_of_csv_is_json(tmp_path):
  path = tmp_path / 'a.csv'
  cell = json.dumps(turns('a')).replace('"', '""')
  path.write_text(
    f'prompt,answer\n"{cell}",1\n"{turns("a")!r}",1\n[1] + [2]?,1\n'
  )
  (_, good), (_, bad), (_, text) = files.rows(path, column_map(path, ''))
  assert good['prompt'] == 'a' and text['prompt'] == '[1] + [2]?'
  assert (
    str(bad) == "prompt is a list of turns in Python's spelling, not in JSON"
  )


@pytest.mark.parametrize('expert', [None, '', 's'])
def test_a_row_that_is_asked_needs_no_expert(tmp_path, expert):
  path = write(tmp_path / 'a.jsonl', {**GOOD, 'expert': 's'})
  columns = column_map(path, '')
  write(path, {**GOOD, 'expert': expert})
  ((_, row),) = files.rows(path, columns, asked_only=True)
  assert row['expert'] == (expert or '')
  ((_, trained),) = files.rows(path, columns)
  assert isinstance(trained, files.BadRow) == (not expert)


@pytest.mark.parametrize(
  'messages, reason',
  [
    (
      [
        *turns('a'),
        {'role': 'assistant', 'content': None, 'tool_calls': [{'f': 1}]},
      ],
      'expert ends with a call of a tool, not with an answer',
    ),
    (
      [*turns('a', 'b'), {'role': 'tool', 'content': 'c'}],
      'expert ends with the tool, not the assistant',
    ),
  ],
)
def test_calls_without_an_answer_are_named(tmp_path, messages, reason):
  path = write(tmp_path / 'a.jsonl', {'messages': messages})
  ((_, bad),) = files.rows(path, column_map(path, ''))
  assert str(bad) == reason


@pytest.mark.parametrize(
  'tools, expected',
  [
    ([{'name': 'f', 'default': None}], [{'name': 'f'}]),
    ('[{"name": "f"}]', [{'name': 'f'}]),
    ([], None),
    (None, None),
    ('', None),
    ('f', files.BadRow),
    (['f'], files.BadRow),
  ],
)
def test_tools_are_a_list_of_objects(tmp_path, tools, expected):
  path = write(tmp_path / 'a.jsonl', {**GOOD, 'tools': tools})
  ((_, row),) = files.rows(path, column_map(path, ''))
  if expected is files.BadRow:
    assert str(row) == 'tools is not a list of JSON objects'
  else:
    assert row.get('tools') == expected
