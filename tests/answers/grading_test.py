"""experiments/grading.py: the reference answers against each other."""

import importlib
import pathlib
import types

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def grading(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))
  return importlib.import_module('grading')


@pytest.mark.parametrize(
  'a, b, two',
  [
    ('1,000', '1000', False),
    ('1000', '1000.1', True),
    ('1e-7', '2e-7', True),
    (r'\frac{1}{2}', '0.5', False),
    (r'$\dfrac{1}{2}$', r'\frac{1}{3}', True),
    ('B', 'C', True),
    ('$x = 1$.', 'x=1', False),
    ('7', '', False),
  ],
)
def test_what_is_another_reference(grading, a, b, two):
  assert grading.differ(a, b, grading.value_of(a), grading.value_of(b)) == two


def test_the_nearest_is_by_value_or_by_the_alphabet(grading):
  stated = ['1', '10', '9', '9.0', 'x+1', 'x+2', 'b']
  values = [grading.value_of(text) for text in stated]
  assert grading.nearest(stated, values) == [2, 3, 1, 1, 5, 4, 4]
  for i, j in enumerate(grading.others(stated, values, seed=0)):
    assert grading.differ(stated[i], stated[j], values[i], values[j])


def test_both_rates(grading):
  options = types.SimpleNamespace(workers=0, seed=0)
  found = grading.rates(['so #### 8', '#### 9', '#### 1,000'], 'math', options)
  assert {kind: counts.answers for kind, counts in found.items()} == {
    'right': 3,
    'wrong, random': 3,
    'wrong, nearest': 3,
  }
  assert not any(counts.surprises for counts in found.values())


@pytest.mark.slow
def test_wrong_answers_to_the_benchmarks_grade_as_wrong(
  shared, grading, capsys, monkeypatch
):
  """At most 0.1 % of as many wrong answers as there are references."""
  from gft_jax.data import benchmarks

  monkeypatch.setattr(grading, 'nearest', lambda stated, values: [])
  options = types.SimpleNamespace(workers=2, seed=1)
  total = wrong = 0
  for name, benchmark in benchmarks.BENCHMARKS.items():
    path = benchmarks.find(shared / 'data/benchmarks', name)
    if path.is_file():
      references = [row['answer'] for row in benchmarks.rows(name, path)]
      found = grading.rates(references, benchmark.reward, options)
      unreadable = references.count('')
      assert len(found['right'].surprises) == unreadable, name
      total += found['wrong, random'].answers
      wrong += len(found['wrong, random'].surprises)
  assert total == 12_716
  assert wrong <= total / 1000
