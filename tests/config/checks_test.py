"""What cannot work is one line, with its name and value."""

import math
import pathlib
import pwd

import pytest

from gft_jax.config import checks
from gft_jax.config.checks import ConfigError


def test_what_is_required_is_said_where_it_does_not_hold():
  checks.require(True, 'never said')
  with pytest.raises(ConfigError) as error:
    checks.require(False, 'a=1 needs b')
  assert str(error.value) == 'a=1 needs b'
  assert isinstance(error.value, ValueError)


def test_a_choice_that_is_none_is_named_with_the_nearest():
  choices = ('none', 'dots', 'full')
  for choice in choices:
    checks.one_of('model.remat', choice, choices)
  with pytest.raises(ConfigError) as error:
    checks.one_of('model.remat', 'dot', choices)
  assert str(error.value) == (
    "model.remat='dot' is not one of none, dots, full; did you mean dots?"
  )


def test_choices_may_be_an_iterator_that_is_read_once():
  with pytest.raises(ConfigError) as error:
    checks.one_of('eval.splits', 'tset', iter(['test', 'train']))
  assert str(error.value) == (
    "eval.splits='tset' is not one of test, train; did you mean test?"
  )


@pytest.mark.parametrize('value', [1, 1e-300, math.inf])
def test_what_is_above_zero_is_positive(value):
  checks.positive('steps', value)


@pytest.mark.parametrize('value', [0, -0.0, -1, -math.inf, math.nan])
def test_zero_and_below_and_nan_are_not_positive(value):
  with pytest.raises(ConfigError) as error:
    checks.positive('steps', value)
  assert str(error.value) == f'steps={value} must be positive'


@pytest.mark.parametrize('value', [0, -0.0, 1e-300, 5])
def test_zero_and_above_is_not_negative(value):
  checks.not_negative('rows', value)


@pytest.mark.parametrize('value', [-1, -1e-300, math.inf, math.nan])
def test_below_zero_infinity_and_nan_are_refused(value):
  with pytest.raises(ConfigError) as error:
    checks.not_negative('rows', value)
  assert str(error.value) == f'rows={value} must be finite and not negative'


def test_the_nearest_is_one_and_a_word_unlike_any_has_none():
  names = ['learning_rate', 'schedule', 'warmup_steps']
  assert checks.nearest('learnin_rate', names) == (
    '; did you mean learning_rate?'
  )
  assert checks.nearest('warmup', iter(names)) == '; did you mean warmup_steps?'
  assert checks.nearest('zzz', names) == checks.nearest('a', []) == ''


@pytest.mark.parametrize(
  'setting, message',
  [
    (
      'data.cache',
      'data.cache=~/x: there is no home directory (HOME is not set); set'
      ' data.cache=DIR to a path without ~',
    ),
    (
      '',
      '~/x: there is no home directory (HOME is not set); name a path without ~',
    ),
  ],
)
def test_a_home_that_is_not_there_is_one_line(monkeypatch, setting, message):
  monkeypatch.setenv('HOME', '/home/me')
  assert checks.user_path('~/x', setting) == pathlib.Path('/home/me/x')
  monkeypatch.delenv('HOME')
  monkeypatch.setattr(pwd, 'getpwuid', {}.__getitem__)
  assert checks.user_path('x', setting) == pathlib.Path('x')
  with pytest.raises(ConfigError) as error:
    checks.user_path('~/x', setting)
  assert str(error.value) == message
