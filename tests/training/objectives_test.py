"""The table: what a row needs, what it was published with, what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from views import ROWS, resolved, view

from gft_jax.config import ConfigError, GroupConfig, LossConfig
from gft_jax.ops import advantages
from gft_jax.training import objectives
from gft_jax.training.objectives import OBJECTIVES


@ROWS
def test_every_setting_that_is_left_open_is_closed(name):
  for settings in (LossConfig(), GroupConfig()):
    closed = objectives.resolve(settings, OBJECTIVES[name])
    assert None not in dataclasses.astuple(closed)
    assert objectives.resolve(closed, OBJECTIVES[name]) == closed


@ROWS
def test_what_a_row_publishes_can_be_set(name):
  """A field that is not None by default would never take the row's value."""
  for field, value in OBJECTIVES[name].published:
    section = LossConfig() if hasattr(LossConfig(), field) else GroupConfig()
    assert getattr(section, field) is None
    dataclasses.replace(section, **{field: value})


def test_psft_refuses_log_probabilities_of_the_sampler():
  with pytest.raises(ConfigError, match=r'behavior=sampler: .* recomputed'):
    resolved('psft', behavior='sampler')
  assert resolved('psft').behavior == 'recomputed'


def test_an_overlong_penalty_needs_rewards():
  with pytest.raises(ConfigError, match='asks for none'):
    resolved('sft', overlong_penalty=1.0)


def test_the_user_wins_over_the_published_value():
  assert resolved('dapo').clip_high == 0.28
  assert resolved('dapo', clip_high=0.2).clip_high == 0.2
  assert resolved('grpo').clip_high == 0.2
  group = objectives.resolve(GroupConfig(refills=0), OBJECTIVES['dapo'])
  assert group.refills == 0


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'reduction': 'tokenmean'}, "reduction='tokenmean' .* mean token_mean"),
    ({'kl': 'k4'}, "kl='k4' is not one of k1, k2, k3, abs, forward"),
    ({'behavior': 'sample'}, 'did you mean sampler'),
  ],
)
def test_an_unknown_name_is_refused(settings, message):
  with pytest.raises(ConfigError, match=message):
    resolved('gft', **settings)


@pytest.mark.parametrize(
  ('name', 'group', 'message'),
  [
    ('gtf', GroupConfig(), "'gtf' is not one of .*; did you mean gft"),
    ('grpo', GroupConfig(1, 0, 4), 'self answers only, but group.experts=1'),
    ('sft', GroupConfig(1, 0, 4), 'only, but group.samples=4'),
    ('luffy', GroupConfig(0, 0, 4), 'luffy needs expert or teacher answers'),
    (
      'chord_phi',
      GroupConfig(1, 0, 0),
      'needs self answers, but group.samples',
    ),
  ],
)
def test_groups_that_an_objective_cannot_use_are_refused(name, group, message):
  with pytest.raises(ConfigError, match=message):
    objectives.choose(name, group)


@pytest.mark.parametrize(
  'group', [GroupConfig(1, 3, 4), GroupConfig(0, 0, 8), GroupConfig(1, 7, 0)]
)
def test_gft_takes_any_group(group):
  assert objectives.choose('gft', group) == OBJECTIVES['gft']


@ROWS
def test_gradients_are_finite_and_only_where_a_token_trains(name):
  settings = resolved(name)
  settings = dataclasses.replace(settings, entropy_bonus=0.0, kl_weight=0.0)

  def loss(logp):
    total = 0.0
    seen = view(logp=logp)
    for term in objectives.with_options(OBJECTIVES[name], seen, settings):
      total += term.coefficient * jnp.where(term.mask, term.values, 0).sum()
    return total

  slope = np.asarray(jax.grad(loss)(view().logp))
  trained = np.asarray(view().mask)
  assert np.isfinite(slope).all() and not slope[~trained].any()
  assert np.abs(slope[trained]).min() > 0


def test_overlong_answers_lose_reward_before_the_advantage(batch):
  settings = objectives.resolve(
    LossConfig(overlong_share=0.5), objectives.OBJECTIVES['dapo']
  )
  ours = objectives.advantages_of(
    objectives.OBJECTIVES['dapo'], batch, settings
  )
  length = np.asarray(batch.responses.length)
  rewards = np.asarray(batch.rewards) - np.maximum(length - 3, 0) / 3
  expected = advantages.group_normalized(
    jnp.asarray(rewards, jnp.float32), batch.member_mask
  )
  np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize('terms', [None, 'dft'])
def test_terms_are_a_function(monkeypatch, terms):
  row = objectives.Objective(terms, (objectives.GIVEN,))
  monkeypatch.setitem(objectives.OBJECTIVES, 'mine', row)
  with pytest.raises(ConfigError, match=r'objective mine: .* are functions'):
    objectives.choose('mine', GroupConfig(experts=1, teachers=0, samples=0))
