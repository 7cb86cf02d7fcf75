import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from numpy.testing import assert_allclose

from gft_jax.ops import advantages

NAMES = ('group_normalized', 'mean_centred', 'leave_one_out')

REWARDS = [
  [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
  [0.2, 0.5, 0.9, -0.3, 9.0, 9.0, 9.0, 9.0],
  [3.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0],
  [1.0] * 8,
  [1.0] * 8,
]
MEMBERS = [[1] * 8, [1] * 4 + [0] * 4, [0] * 7 + [1], [1] * 8, [0] * 8]


@pytest.mark.parametrize('name', NAMES)
def test_oracle(name):
  ours = getattr(advantages, name)(jnp.array(REWARDS), jnp.array(MEMBERS))
  assert_allclose(
    ours, getattr(oracles, name)(REWARDS, MEMBERS), rtol=1e-6, atol=1e-6
  )


def test_literals():
  ours = advantages.group_normalized(jnp.array(REWARDS), jnp.array(MEMBERS))
  assert_allclose(ours[0, [0, 7]], [1.207612, -0.724567], atol=1e-6)
  assert ours[2].tolist() == [0.0] * 7 + [pytest.approx(5 / (1 + 1e-6))]


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_masked_rewards_do_not_matter(name, bad):
  function = jax.jit(getattr(advantages, name))
  members = jnp.array(MEMBERS, bool)
  rewards = jnp.array(REWARDS)
  hidden = jnp.where(members, rewards, bad)
  assert (function(hidden, members) == function(rewards, members)).all()
  gradient = jax.grad(lambda r: function(r, members).sum())(hidden)
  assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_equal_rewards_are_exactly_zero(name, dtype):
  sizes = np.arange(2, 40)
  members = np.arange(40)[None] < sizes[:, None]
  rewards = jnp.full(members.shape, 0.1, dtype)
  ours = jax.jit(getattr(advantages, name))(rewards, members)
  assert not ours.any()


def test_equal_rewards_would_not_be_zero_in_plain_float32():
  worst = 0.0
  for size in range(2, 40):
    rewards = np.full(size, np.float32(0.1))
    centred = rewards - rewards.sum() / np.float32(size)
    worst = max(worst, abs(centred / (centred.std(ddof=1) + 1e-6)).max())
  assert worst > 1e-3


@pytest.mark.parametrize('name', NAMES)
def test_a_bad_reward_of_a_member_is_not_hidden(name):
  ours = getattr(advantages, name)(
    jnp.array([[jnp.nan, jnp.nan]]), jnp.ones((1, 2))
  )
  assert jnp.isnan(ours).all()


def test_leave_one_out_is_mean_centred_times_n_over_n_minus_one():
  rewards, members = jnp.array(REWARDS), jnp.array(MEMBERS)
  for row, count in ((0, 8), (1, 4)):
    ours = advantages.leave_one_out(rewards, members)[row]
    centred = advantages.mean_centred(rewards, members)[row]
    assert_allclose(ours, centred * count / (count - 1), rtol=1e-6)


def test_large_offset_survives():
  """Two passes: E[r²] - E[r]² would lose everything here."""
  rewards = jnp.array([[10000.0, 10001.0, 10002.0]])
  ours = advantages.group_normalized(rewards, jnp.ones((1, 3)))
  assert_allclose(ours, [[-1, 0, 1]], atol=1e-5)


def test_epsilon_is_an_argument():
  ours = advantages.group_normalized(
    jnp.array([[1.0, -1.0]]), jnp.ones((1, 2)), epsilon=1.0
  )
  assert_allclose(ours, np.array([[1.0, -1.0]]) / (2**0.5 + 1), rtol=1e-6)


def test_low_precision_and_integers_become_float32():
  for dtype in ('bfloat16', 'int32'):
    rewards = jnp.array([[1, 1, 1, 0, 0, 0, 0, 0]], dtype)
    ours = advantages.group_normalized(rewards, jnp.ones((1, 8)))
    assert ours.dtype == jnp.float32
    assert_allclose(ours[0, 0], 1.2076124, rtol=1e-6)


def test_is_flat():
  flat = advantages.is_flat(jnp.array(REWARDS), jnp.array(MEMBERS))
  assert flat.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize(
  'rewards, flat',
  [
    ([1000.0, 1000.00006], True),  # Neighbours in float32.
    ([-1000.0, -1000.00006, -1000.0], True),
    ([0.3, np.float32(0.1) + np.float32(0.2)], True),
    ([1000.0, 1000.001], False),
    ([1e6, 1e6 + 1], False),
    ([1e-9, 2e-9], False),
    ([0.0, 1e-30], False),
    ([-np.inf, 1.0], False),
    ([np.nan, 1.0], False),
  ],
)
def test_flat_is_equal_within_the_resolution_of_float32(rewards, flat):
  rewards = jnp.array([rewards], jnp.float32)
  members = jnp.ones(rewards.shape, bool)
  assert advantages.is_flat(rewards, members).item() == flat
  for function in (
    advantages.group_normalized,
    advantages.mean_centred,
    advantages.leave_one_out,
  ):
    assert (not function(rewards, members).any()) == flat


def test_another_beside_a_nearly_flat_baseline_keeps_its_distance():
  rewards = jnp.array([[1000.0, 1000.00006, 1000.00006, 5.0]])
  own = jnp.array([[1, 1, 0, 0]])
  ours = advantages.mean_centred(rewards, jnp.ones((1, 4)), baseline_mask=own)
  assert ours[0, :3].tolist() == [0, 0, 0]
  assert_allclose(ours[0, 3], -995.00006, rtol=1e-6)


OWN = [[0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize('name', ['group_normalized', 'mean_centred'])
def test_statistics_of_some_members_serve_all(name):
  """Against numpy, with the members that count picked by hand."""
  rewards, members = jnp.array(REWARDS[:2]), jnp.array(MEMBERS[:2])
  ours = getattr(advantages, name)(
    rewards, members, baseline_mask=jnp.array(OWN)
  )
  for row, counted, valid in ((0, slice(1, 8), 8), (1, slice(2, 4), 4)):
    values = np.array(REWARDS[row])
    some = values[counted]
    expected = values - some.mean()
    if name == 'group_normalized':
      expected /= some.std(ddof=1) + 1e-6
    expected[valid:] = 0
    assert_allclose(ours[row], expected, rtol=1e-5, atol=1e-6)


def test_others_against_a_flat_baseline_keep_units_of_reward():
  rewards = jnp.array([[1.0, 0.1, 0.1, 0.1]])
  own = jnp.array([[0, 1, 1, 1]])
  for function in (advantages.group_normalized, advantages.mean_centred):
    ours = function(rewards, jnp.ones((1, 4)), baseline_mask=own)
    assert_allclose(ours[0, 0], 0.9, rtol=1e-5)
    assert not ours[0, 1:].any()


def test_everybody_as_baseline_is_the_default():
  rewards, members = jnp.array(REWARDS), jnp.array(MEMBERS)
  for function in (advantages.group_normalized, advantages.mean_centred):
    default = function(rewards, members)
    assert (
      function(rewards, members, baseline_mask=jnp.ones((5, 8))) == default
    ).all()


def test_overlong():
  """Buffer of 2 of 10 tokens: nothing up to 8, all of it at 10."""
  ours = advantages.overlong(jnp.array([0, 8, 9, 10]), limit=10, share=0.2)
  assert_allclose(ours, [0, 0, 0.5, 1], atol=1e-6)
