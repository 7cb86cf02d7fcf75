"""The public files: counted, rendered, and their own answers graded."""

import hashlib
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from gft_jax.config import ConfigError, RewardConfig
from gft_jax.data import benchmarks, files
from gft_jax.rewards.grader import Grader

# Of TabMWP there is no file at hand, only rows written in its shape.
AT_HAND = [name for name in benchmarks.BENCHMARKS if name != 'tabmwp']


def file_of(shared, name):
  return shared / 'data' / 'benchmarks' / f'{name}.jsonl'


@pytest.mark.parametrize('name', AT_HAND)
def test_every_file_is_read_to_its_last_row(shared, name):
  rows = benchmarks.rows(name, file_of(shared, name))
  assert len(rows) == benchmarks.BENCHMARKS[name].count
  unanswered = [i for i, row in enumerate(rows) if not row['answer']]
  assert unanswered == ([167, 192] if name == 'gaokao2023en' else [])


# Beginning of the SHA-256 of all prompts, as one JSON list: what parse_question
# of the official code (ZJU-OmniAI/GFT at 763384d) gives for these files.
OFFICIAL = {
  'aime24': '5a2112b6df5dadcf',
  'amc23': '89689b7a9c8aef7b',
  'college_math': 'dc85e938379c100f',
  'gaokao2023en': 'ac6f13faa27ac25f',
  'gsm8k': '0c5afafea96570fb',
  'math_oai': 'f2be42c84a8b6881',
  'mawps': 'd4e9531d3cd78441',
  'mawps_singleop': '5ade9c70a47a57a7',
  'minerva_math': '20bf0b2cc11bdc41',
  'mmlu_stem': 'cccc9b25ae400f18',
  'olympiadbench': '7975c74e3fce6486',
  'sat_math': 'c9c361579fe85506',
  'svamp': '1fc4b78d34e3bd99',
}


@pytest.mark.parametrize('name', AT_HAND)
def test_every_prompt_is_the_official_one(shared, name):
  prompts = [
    row['prompt'] for row in benchmarks.rows(name, file_of(shared, name))
  ]
  digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
  assert digest[:16] == OFFICIAL[name]


def official(name, row):
  """The prompt of a row, as the official code words the benchmarks that join.

  Written from what its parse_question does, and apart from the templates.
  """
  if name == 'svamp':
    stop = '' if row['Body'].strip()[-1] == '.' else '.'
    return row['Body'].strip() + stop + ' ' + row['Question'].strip()
  if name == 'mmlu_stem':
    a, b, c, d = (text.strip() for text in row['choices'])
    options = f'(A) {a} (B) {b} (C) {c} (D) {d}'
  elif name == 'sat_math':
    options = '(' + row['options'].strip()
    for letter in 'BCD':
      options = options.replace(f' {letter}) ', f' ({letter}) ')
  else:
    words = row['answer'].strip('$.').lower()
    return row['question'] + ' (Yes or No)' * (words in ('yes', 'no'))
  return f'{row["question"].strip()}\nAnswer Choices: {options}'


@pytest.mark.parametrize(
  'name', ['college_math', 'mmlu_stem', 'sat_math', 'svamp']
)
def test_prompts_that_are_joined_row_by_row(shared, name):
  file = file_of(shared, name)
  rows = map(json.loads, file.read_text().splitlines())
  asked = [row['prompt'] for row in benchmarks.rows(name, file)]
  assert asked == [official(name, row) for row in rows]


def test_prompts_and_answers_of_each_kind(shared):
  def first(name):
    return benchmarks.rows(name, file_of(shared, name))[0]

  assert first('amc23')['answer'] == '27'
  assert first('svamp')['prompt'].endswith(
    'collection. If the bananas are organized into 2 groups and oranges are'
    ' organized into 93 groups. How big is each group of bananas?'
  )
  row = first('mmlu_stem')
  assert row['answer'] == 'C'
  _, options = row['prompt'].splitlines()
  assert options.startswith('Answer Choices: (A) maintain')
  assert ' logistic curve (B) opt for' in options
  row = first('sat_math')
  assert row['answer'] == 'A'
  assert row['prompt'].endswith(
    '\nAnswer Choices: (A) $f(-6)=0$ (B) $f(6)=-6$ (C) $f(-6)=6$ (D) $f(0)=-6$'
  )
  assert first('olympiadbench')['answer'] == '2'
  assert first('olympiadbench')['prompt'].startswith('Xenia and Sergey')


@pytest.mark.parametrize(
  ('answer', 'asked'),
  [
    ('yes', ' (Yes or No)'),
    ('No.', ' (Yes or No)'),
    (r'$\text{Yes}$', ' (Yes or No)'),
    ('TRUE', ' (True or False)'),
    (r'\text{false}', ' (True or False)'),
    ('no solution', ''),
    ('yesterday', ''),
    ('5', ''),
    ('', ''),
  ],
)
def test_a_question_of_yes_or_no_says_so(answer, asked):
  row = {'question': 'Is it so?', 'answer': answer}
  template = benchmarks.BENCHMARKS['college_math'].prompt
  assert benchmarks._render(template, row) == f'Is it so?{asked}'


@pytest.mark.parametrize(
  ('template', 'value', 'text'),
  [
    ('{x}', 3.0, '3'),
    ('{x:sentence} Why?', ' It rains', 'It rains. Why?'),
    ('{x:sentence} Why?', 'It rains.', 'It rains. Why?'),
    ('{x:sentence} Why?', 'It rains!', 'It rains!. Why?'),
    ('{x:options}', ['a', ' b ', 3], '(A) a (B) b (C) 3'),
    ('{x:options}', 'A) a B) F(B) C) c', '(A) a (B) F(B) (C) c'),
    ('{x:options}', 'A. 1 B. 2', '(A. 1 B. 2'),
    ('of{x: "*"}.', 'me', 'of "me".'),
    ('of{x: *}.', ['a', "b's"], """of ['a', "b's"]."""),
    ('of{x: *}.', 7, 'of 7.'),
    ('of{x: *}.', None, 'of.'),
    ('of{x: *}.', [], 'of.'),
  ],
)
def test_forms_of_a_template(template, value, text):
  assert benchmarks._render(template, {'x': value}) == text


@pytest.mark.parametrize(
  ('template', 'value', 'message'),
  [
    ('Do it: {x}', ' ', "has a column 'x' that is blank"),
    ('{x:sentence} Why?', '', 'is blank'),
    ('{x:options}', 'B) 2 A) 1', "'x' that is no list of options"),
    ('{x:options}', ['a', None], 'at most 26 texts'),
    ('{x: *}', {'a': 1}, 'at most 26 texts'),
    ('{x:letter}', 'B', 'no place in a list'),
    ('{x:verdict}', ['yes'], 'is a list, not text'),
  ],
)
def test_a_value_that_fits_no_form_is_named(template, value, message):
  with pytest.raises(files.BadRow, match=message):
    benchmarks._render(template, {'x': value})


def test_tables_of_tabmwp(tmp_path):
  """Columns as its publishers write them: answers and choices are texts."""
  rows = [
    {
      'table_title': 'Coins of Ann',
      'table': 'Coin | Number\nPenny | 3\nDime | 1,200',
      'question': 'How many dimes has Ann?',
      'choices': None,
      'answer': '1,200',
      'ans_type': 'integer_number',
    },
    {
      'table_title': None,
      'table': 'Day | Rain\nMonday | yes',
      'question': 'Was Monday dry?',
      'choices': ['yes', 'no'],
      'answer': 'no',
      'ans_type': 'boolean_text',
    },
    {
      'table_title': '',
      'table': 'Part | Size\nA | half',
      'question': 'Which share is A?',
      'choices': None,
      'answer': '1/2',
      'ans_type': 'decimal_number',
    },
  ]
  path = tmp_path / 'tabmwp.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  found = benchmarks.rows('tabmwp', path)
  assert [row['prompt'] for row in found] == [
    'Read the following table regarding "Coins of Ann" and answer a question:\n'
    'Coin | Number\nPenny | 3\nDime | 1,200\nHow many dimes has Ann?',
    'Read the following table and answer a question:\n'
    'Day | Rain\nMonday | yes\nWas Monday dry? Please select from the following'
    " options: ['yes', 'no'] (Yes or No)",
    'Read the following table and answer a question:\n'
    'Part | Size\nA | half\nWhich share is A?',
  ]
  responses = [r'\boxed{1200}', r'\boxed{\text{no}}', r'So \boxed{0.5}.']
  answers = [row['answer'] for row in found]
  with Grader(RewardConfig(function='math')) as grader:
    right = grader.score([''] * 3, answers, responses)
    wrong = grader.score([''] * 3, answers, [r'\boxed{\text{yes}}'] * 3)
  assert right.values.tolist() == [1, 1, 1]
  assert wrong.values.tolist() == [0, 0, 0]
  # A parquet file of the same rows says the same.
  parquet = tmp_path / 'tabmwp.parquet'
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
  assert benchmarks.rows('tabmwp', parquet) == found
  path.write_text('')
  with pytest.raises(ConfigError, match='has no rows'):
    benchmarks.rows('tabmwp', path)


def test_the_benchmarks_of_the_paper_by_its_names():
  paper = (
    'AMC23, College Math, Gaokao2023En, MATH, Minerva Math, TabMWP,'
    ' OlympiadBench, MMLU-STEM, SAT Math, MAWPS, SVAMP, AIME24, GSM8K'
  )
  found = [benchmarks.canonical(name) for name in paper.split(',')]
  assert sorted([*found, 'mawps_singleop']) == sorted(benchmarks.BENCHMARKS)
  assert benchmarks.canonical('math500') == 'math_oai'
  assert benchmarks.canonical('MATH-500') == 'math_oai'
  assert set(benchmarks.ALIASES.values()) <= set(benchmarks.BENCHMARKS)
  assert not set(benchmarks.ALIASES) & set(benchmarks.BENCHMARKS)
  with pytest.raises(ConfigError, match='did you mean svamp'):
    benchmarks.canonical('swamp')


@pytest.mark.parametrize(
  ('lines', 'message'),
  [
    ([{'Body': 'a', 'Question': 'b'}], "row 1 has no column 'Answer'"),
    (
      [{'Body': 'a', 'Question': 'b', 'Answer': None}],
      "'Answer' that is a NoneType",
    ),
    (
      [{'Body': 'a', 'Question': 'b', 'Answer': 1}],
      'has 1 rows, but svamp has',
    ),
    ([[]], 'row 1 is not a JSON object'),
  ],
)
def test_a_file_that_is_not_the_benchmark_is_one_line(tmp_path, lines, message):
  path = tmp_path / 'svamp.jsonl'
  path.write_text('\n'.join(map(json.dumps, lines)))
  with pytest.raises(ConfigError, match=message):
    benchmarks.rows('svamp', path)


def test_a_wrong_name_or_place_is_one_line(tmp_path):
  with pytest.raises(ConfigError, match='did you mean svamp'):
    benchmarks.rows('swamp', tmp_path / 'x.jsonl')
  with pytest.raises(ConfigError, match='does not exist'):
    benchmarks.rows('svamp', tmp_path / 'x.jsonl')


@pytest.mark.parametrize(
  ('response', 'value'),
  [
    (r'So \boxed{C}.', 1),
    (r'\boxed{\text{(C)}} and not (B)', 1),
    ('The answer is (C) 12.', 1),
    ('Answer: **C**', 1),
    ('A bird is not B) but C)', 1),
    ('I think A. No: C', 1),
    ('C', 1),
    ('B.', 0),
    (r'\boxed{A} or C', 0),
    ('A bird in the hand', None),
    ('', None),
  ],
)
def test_choice(response, value):
  with Grader(RewardConfig(function='choice')) as grader:
    scored = grader.score([''], ['C'], [response])
  assert scored.values.tolist() == [value or 0]
  assert scored.failures == ({'parse': 1} if value is None else {})


# Rows, from 1, whose reference answer is empty.
UNVERIFIABLE = {'gaokao2023en': [168, 193]}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow)
    if benchmarks.BENCHMARKS[name].count > 2500
    else name
    for name in AT_HAND
  ],
)
def test_the_reference_answers_are_right(shared, name):
  rows = benchmarks.rows(name, file_of(shared, name))
  answers = [row['answer'] for row in rows]
  # As a policy would write them: in a box, unless they mix text and mathematics.
  responses = [
    text
    if '$' in text.replace(r'\$', '').strip('$')
    or re.search('boxed|#{4}', text)
    else f'The answer is \\boxed{{{text.strip("$")}}}.'
    for text in answers
  ]
  reward = benchmarks.BENCHMARKS[name].reward
  settings = RewardConfig(function=reward, workers=2, timeout_s=20.0)
  with Grader(settings) as grader:
    scored = grader.score([''] * len(rows), answers, responses)
  wrong = [row for row, value in enumerate(scored.values, 1) if value != 1]
  assert wrong == UNVERIFIABLE.get(name, [])
