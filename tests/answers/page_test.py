"""Every example of gft_jax/answers/README.md is graded as its table says."""

import pathlib
import re

import pytest
from answers.rewards_test import EVAL_DIFFERENCES, REWARD_DIFFERENCES

from gft_jax import answers
from gft_jax.answers import AnswerError

PAGE = pathlib.Path(answers.__file__).with_name('README.md')


def tables():
  """The rows of each table: cells, each a list of code spans."""
  found, rows = [], []
  for line in [*PAGE.read_text().splitlines(), '']:
    if not line.startswith('|'):
      found += [rows] if rows else []
      rows = []
      continue
    cells = re.split(r'(?<!\\)\|', line)[1:-1]
    spans = [
      [span.replace(r'\|', '|') for span in re.findall('`([^`]+)`', cell)]
      for cell in cells
    ]
    rows.append((cells[0].strip(), *spans[1:]))
  return [rows[2:] for rows in found]


STEPS, MATHEMATICS, CHOICES, VOTES, OFFICIAL = tables()


def cases(rows):
  return [
    (kind, reference, answer, worth)
    for kind, (reference,), *sides in rows
    for worth, side in zip((1, 0), sides, strict=True)
    for answer in side
  ]


def graded(grade, reference, answer):
  try:
    return grade('', reference, answer)
  except AnswerError:
    return 0.0


@pytest.mark.parametrize('kind, reference, answer, worth', cases(MATHEMATICS))
def test_mathematics(kind, reference, answer, worth):
  assert graded(answers.mathematics, reference, answer) == worth


@pytest.mark.parametrize('kind, reference, answer, worth', cases(CHOICES))
def test_choices(kind, reference, answer, worth):
  assert graded(answers.choice, reference, answer) == worth


@pytest.mark.parametrize('kind, same, others', VOTES)
def test_votes(kind, same, others):
  (vote,) = {answers.extract('math', answer) for answer in same}
  assert vote is not None
  assert vote not in {answers.extract('math', answer) for answer in others}


def test_where_the_official_grader_differs():
  """As rewards_test.py finds: every case of its two lists, and no other."""
  lines = PAGE.read_text().partition('## Beside')[2].splitlines()
  rows = [re.split(r' \| ', line.strip('| ')) for line in lines if '`' in line]
  found = [row for row in rows if len(row) == 5]
  assert (
    len(found)
    == len(OFFICIAL)
    == len(REWARD_DIFFERENCES) + len(EVAL_DIFFERENCES)
  )
  for reference, answer, official, here, _ in found:
    worth = graded(answers.mathematics, reference.strip('`'), answer.strip('`'))
    assert worth == float(here) == 1 - float(official)


def test_the_tables_are_read_whole():
  assert [row[0] for row in STEPS] == list('1234567')
  assert len(MATHEMATICS) > 40 and len(CHOICES) > 4 and len(VOTES) > 4
  assert all(right and wrong for *_, right, wrong in MATHEMATICS + CHOICES)
