"""What one cell holds: text, a number, an answer, or why it cannot be used."""

import datetime
import decimal

import pytest

from gft_jax.data import cells


@pytest.mark.parametrize(
  'value, expected',
  [
    ('2', '2'),
    (b'2', '2'),
    (2, '2'),
    (2.0, '2'),
    (2.5, '2.5'),
    (decimal.Decimal('2.00'), '2'),
    (['2'], '2'),
    ([b'2'], '2'),
    ([2], '2'),
  ],
)
def test_an_answer_is_one_text_or_number(value, expected):
  assert cells.answer_of(value) == expected


@pytest.mark.parametrize(
  'value, reason',
  [
    ([], 'answer is a list of 0, not one answer'),
    (['2', '3'], 'answer is a list of 2, not one answer'),
    ([['2']], 'answer is a list, not text'),
    ([None], 'answer is missing'),
    (True, 'answer is a bool, not text'),
    ({'value': 2}, 'answer is a dict, not text'),
    (float('nan'), 'answer is nan, not text'),
  ],
)
def test_what_is_no_answer_is_named(value, reason):
  with pytest.raises(cells.BadRow) as caught:
    cells.answer_of(value)
  assert str(caught.value) == reason


def test_values_of_any_kind_become_json():
  day = datetime.date(2026, 1, 2)
  assert cells.as_json({'a': [b'x', None, {'b': None, 'c': day}]}) == {
    'a': ['x', None, {'c': '2026-01-02'}]
  }
