"""The public files: counted, rendered, and their own answers graded."""

import json
import re

import pytest

from gft_jax import rewards
from gft_jax.config import ConfigError, RewardConfig
from gft_jax.data import benchmarks


def file_of(shared, name):
  return shared / 'data' / 'benchmarks' / f'{name}.jsonl'


@pytest.mark.parametrize('name', benchmarks.BENCHMARKS)
def test_every_file_is_read_to_its_last_row(shared, name):
  rows = benchmarks.rows(name, file_of(shared, name))
  assert len(rows) == benchmarks.BENCHMARKS[name].count
  unanswered = [i for i, row in enumerate(rows) if not row['answer']]
  assert unanswered == ([167, 192] if name == 'gaokao2023en' else [])


def test_prompts_and_answers_of_each_kind(shared):
  def first(name):
    return benchmarks.rows(name, file_of(shared, name))[0]

  assert first('amc23')['answer'] == '27'
  assert first('svamp')['prompt'].endswith(
    'collection. If the bananas are organized into 2 groups and oranges are'
    ' organized into 93 groups How big is each group of bananas?'
  )
  row = first('mmlu_stem')
  assert row['answer'] == 'C'
  lines = row['prompt'].splitlines()
  assert lines[1].startswith('A) maintain') and lines[4].startswith('D) ')
  assert first('sat_math')['answer'] == 'A'
  assert first('olympiadbench')['answer'] == '2'
  assert first('olympiadbench')['prompt'].startswith('Xenia and Sergey')


@pytest.mark.parametrize(
  ('lines', 'message'),
  [
    ([{'Body': 'a', 'Question': 'b'}], "row 1 has no column 'Answer'"),
    ([{'Body': 'a', 'Question': 'b', 'Answer': None}], 'is a NoneType'),
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
  with rewards.Grader(RewardConfig(function='choice')) as grader:
    scored = grader.score([''], ['C'], [response])
  assert scored.values.tolist() == [value or 0]
  assert scored.failures == ({'parse': 1} if value is None else {})


# Reference answers that math-verify cannot read, or not as equal to themselves.
UNVERIFIABLE = {'college_math': 30, 'gaokao2023en': 2}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow) if count > 2500 else name
    for name, (count, *_) in benchmarks.BENCHMARKS.items()
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
  with rewards.Grader(settings) as grader:
    scored = grader.score([''] * len(rows), answers, responses)
  wrong = sum(value != 1 for value in scored.values)
  assert wrong <= UNVERIFIABLE.get(name, 0)
