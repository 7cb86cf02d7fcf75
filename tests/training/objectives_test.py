"""The table: what a row needs, what it was published with, what it says."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.batch import EXPERT, SELF, TEACHER
from gft_jax.config import ConfigError, GroupConfig, LossConfig
from gft_jax.training import objectives
from gft_jax.training.objectives import OBJECTIVES

ROWS = pytest.mark.parametrize('name', OBJECTIVES)
B, G, T = 2, 4, 3
ORIGIN = np.array([[EXPERT, TEACHER, SELF, SELF]] * B)


def view(**changes):
  rng = np.random.default_rng(0)
  logp = -rng.exponential(size=(B, G, T)).astype('float32')
  mask = np.arange(T) < np.array([[3, 2, 1, 3], [1, 3, 2, 0]])[..., None]
  fields = {
    'logp': np.where(mask, logp, 0),
    'behavior_logp': np.where(mask, logp + 0.1, 0),
    'entropy': np.where(mask, 0.5, 0).astype('float32'),
    'advantages': rng.normal(size=(B, G)).astype('float32'),
    'origin': ORIGIN,
    'mask': mask,
    'end': np.zeros((B, G, T), bool),
    'step': np.int32(0),
  }
  fields = {k: jnp.asarray(v) for k, v in (fields | changes).items()}
  return objectives.View(**fields)


def resolved(name, **settings):
  return objectives.resolve(LossConfig(**settings), OBJECTIVES[name])


@ROWS
def test_a_docstring_says_where_with_what_and_what_becomes_of_the_unlikely(
  name,
):
  text = ' '.join(OBJECTIVES[name].terms.__doc__.split())
  for part in ('Source: ', 'Published: ', 'Unlikely token: '):
    assert text.count(part) == 1, part
  source = text.split('Source: ')[1].split('Published: ')[0]
  assert re.search(r'at [0-9a-f]{7}\b|as `|Table 2', source)
  assert re.search(r'arXiv \d{4}\.\d{5}|at [0-9a-f]{7}\b|as `', source)


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


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'clip_high': -0.5}, 'clip_high=-0.5 must not be negative'),
    ({'dual_clip': 0.5}, 'dual_clip=0.5 is neither 0 nor above 1'),
    ({'mu_decay_steps': -3}, 'mu_decay_steps=-3'),
    ({'kl_weight': -1.0}, 'kl_weight=-1.0'),
  ],
)
def test_a_number_that_cannot_work_is_refused(settings, message):
  with pytest.raises(ConfigError, match=message):
    LossConfig(**settings)


def test_no_sampler_wrote_what_psft_divides_by():
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
def test_a_name_that_is_no_choice_is_refused(settings, message):
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


def test_chord_starts_as_imitation_and_ends_as_reward():
  """µ at 0 and after its decay, as the share of each term."""
  settings = resolved('chord_mu')
  for step, mu in ((0, 0.9), (10**6, 0.05)):
    own, given = OBJECTIVES['chord_mu'].terms(
      view(step=np.int32(step)), settings
    )
    np.testing.assert_allclose(own.coefficient, 1 - mu, rtol=1e-6)
    np.testing.assert_allclose(given.coefficient, mu, rtol=1e-6)
    assert (own.mask == view().own).all() and (given.mask == view().given).all()


def test_hybrid_rows_weigh_given_tokens_by_shape_and_own_ones_by_ratio():
  settings = resolved('luffy')
  (term,) = OBJECTIVES['luffy'].terms(view(), settings)
  seen = view()
  p, a = jnp.exp(seen.logp), seen.advantages[..., None]
  expected = jnp.where(
    (ORIGIN == SELF)[..., None], -a * jnp.exp(-0.1), -a * p / (p + 0.1)
  )
  trained = np.asarray(seen.mask)
  np.testing.assert_allclose(term.values[trained], expected[trained], rtol=1e-5)


def test_ablations_of_gft_meet_sft():
  """Without DCR and GAL the loss is SFT's; each alone is half way."""
  everything = view()
  given = everything._replace(mask=everything.given)
  (sft,) = OBJECTIVES['sft'].terms(given, resolved('sft'))
  (no_gal,) = OBJECTIVES['gft_no_gal'].terms(given, resolved('gft', tau=0.0))
  np.testing.assert_allclose(no_gal.values, sft.values)
  ones = given._replace(advantages=jnp.ones((B, G)))
  (no_dcr,) = OBJECTIVES['gft_no_dcr'].terms(ones, resolved('gft'))
  np.testing.assert_allclose(no_dcr.values, sft.values)
  (gft,) = OBJECTIVES['gft'].terms(ones, resolved('gft', tau=0.7))
  (dcr,) = OBJECTIVES['gft_no_gal'].terms(given, resolved('gft', tau=0.7))
  np.testing.assert_allclose(dcr.values, gft.values)
  assert (gft.values < sft.values).any()


def test_the_end_is_spared_on_request():
  end = np.zeros((B, G, T), bool)
  end[:, :, 0] = True
  for name in ('dft', 'gft', 'gft_no_gal', 'asft'):
    row = OBJECTIVES[name]
    on, off = (
      row.terms(view(end=end), resolved(name, rectify_end=rectify))[0].values
      for rectify in (True, False)
    )
    assert (on[..., 1:] == off[..., 1:]).all()
    assert (jnp.abs(off[..., 0]) >= jnp.abs(on[..., 0])).all()
    assert (off[..., 0] != on[..., 0]).any()
