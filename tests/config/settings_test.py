import pytest

from gft_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  LossConfig,
  Stage,
  override,
  profiled_steps,
  template_arguments,
)


@pytest.mark.parametrize(
  ('stages', 'message'),
  [
    ((Stage('a'), Stage('a')), "two stages are named 'a'"),
    ((Stage('a', 'b'), Stage('b')), "start='b' is not an earlier stage"),
  ],
)
def test_the_tree_of_stages_is_checked(stages, message):
  with pytest.raises(ConfigError, match=message):
    Config(stages=stages)


def test_the_steps_of_a_profile():
  steps = profiled_steps
  assert steps('', 'gft') == range(0)
  assert steps('3..5', 'gft') == steps('3..5', 'sft') == range(3, 6)
  assert steps('sft:10..10', 'sft') == range(10, 11)
  assert not steps('sft:10..10', 'gft')


@pytest.mark.parametrize(
  'profile', ['3', '3-5', '5..3', '0..2', ':1..2', 'a..b']
)
def test_a_profile_without_a_range_of_steps_is_refused(profile):
  with pytest.raises(ConfigError, match=r'form 3\.\.5 or STAGE:3') as error:
    override(Config(), f'log.profile={profile}')
  assert profile in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'clip_high': -0.5}, 'clip_high=-0.5 must not be negative'),
    ({'dual_clip': 0.5}, 'dual_clip=0.5 is neither 0 nor above 1'),
    ({'mu_decay_steps': -3}, 'mu_decay_steps=-3'),
    ({'kl_weight': -1.0}, 'kl_weight=-1.0'),
  ],
)
def test_numbers_of_a_loss_out_of_range_are_refused(settings, message):
  with pytest.raises(ConfigError, match=message):
    LossConfig(**settings)


@pytest.mark.parametrize(
  ('text', 'values'),
  [
    ('', {}),
    ('enable_thinking=false', {'enable_thinking': False}),
    ('"enable_thinking=false"', {'enable_thinking': False}),
    ("'a=True, b = none'", {'a': True, 'b': None}),
    ('a=yes,b=No,c=ON,d=off', {'a': True, 'b': False, 'c': True, 'd': False}),
    ("a='false',b='x, y' ,c='on'", {'a': False, 'b': 'x, y', 'c': True}),
    ('a="off",b=0,c=1', {'a': 'off', 'b': 0, 'c': 1}),
    ('date_string=26 Jul 2024,n=3', {'date_string': '26 Jul 2024', 'n': 3}),
    ('names=["a", "b"],word="x, y"', {'names': ['a', 'b'], 'word': 'x, y'}),
  ],
)
def test_arguments_of_a_template(text, values):
  assert template_arguments(text) == values
  assert DataConfig(template_args=text).template_args == text


@pytest.mark.parametrize('text', ['thinking', 'a=', 'a=1,a=2', '"a=1', '=1'])
def test_arguments_of_a_template_that_are_none_are_refused(text):
  with pytest.raises(ConfigError, match=r'is not of the form name=value'):
    DataConfig(template_args=text)
