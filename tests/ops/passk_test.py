import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from numpy.testing import assert_allclose

from gft_jax.ops import passk


@pytest.mark.parametrize('samples, k', [(1, 1), (4, 2), (6, 3), (6, 6)])
def test_counting(samples, k):
  correct = np.arange(samples + 1)
  ours = jax.jit(lambda c: passk.pass_at_k(c, samples, k))(correct)
  expected = [oracles.pass_at_k_by_counting(c, samples, k) for c in correct]
  assert expected == [oracles.pass_at_k(c, samples, k) for c in correct]
  assert_allclose(ours, np.array(expected, float), atol=1e-6)
  assert ours.dtype == jnp.float32


@pytest.mark.parametrize('k', [1, 2, 16, 128, 255, 256])
def test_exact_rationals_at_many_samples(k):
  samples = 256
  correct = np.arange(samples + 1)
  ours = jax.jit(lambda c: passk.pass_at_k(c, samples, k))(correct)
  expected = [float(oracles.pass_at_k(c, samples, k)) for c in correct]
  assert_allclose(ours, expected, atol=1e-5)
  assert (ours[0], ours[-1]) == (0, 1)
  assert (np.diff(np.asarray(ours)) >= 0).all()


def test_broadcast_and_jit():
  correct, samples = jnp.array([[1], [2]]), jnp.array([[4, 8, 16]])
  ours = passk.pass_at_k(correct, samples, 2)
  expected = [
    [float(oracles.pass_at_k(c, n, 2)) for n in (4, 8, 16)] for c in (1, 2)
  ]
  assert_allclose(ours, expected, rtol=1e-5)
  jitted = jax.jit(passk.pass_at_k, static_argnums=2)
  assert_allclose(jitted(correct, samples, 2), expected, rtol=1e-5)


def test_too_few_samples_raise_where_they_are_known():
  with pytest.raises(ValueError, match=r'k=5 .* got 4'):
    passk.pass_at_k(jnp.array([1, 1]), jnp.array([8, 4]), 5)
  with pytest.raises(ValueError, match=r'k=5 .* got 4'):
    jax.jit(lambda c: passk.pass_at_k(c, 4, 5))(jnp.array(1))
  with pytest.raises(ValueError, match='k=0'):
    passk.pass_at_k(jnp.array(1), jnp.array(4), 0)


def test_too_few_samples_are_nan_where_nothing_can_be_raised():
  jitted = jax.jit(passk.pass_at_k, static_argnums=2)
  ours = jitted(jnp.array([1, 1]), jnp.array([8, 4]), 5)
  assert jnp.isnan(ours).tolist() == [False, True]


def test_avg_at_k():
  ours = passk.avg_at_k(jnp.array([0, 2, 4]), jnp.array([4, 4, 4]))
  assert float(ours) == 0.5


@pytest.mark.parametrize('k', range(1, 7))
def test_majority_against_a_count(k):
  """Six answers with few distinct texts, so that ties and silence occur."""
  rng = np.random.default_rng(k)
  votes = rng.integers(-1, 3, (50, 6))
  correct = rng.random((50, 6)) < 0.5
  ours = jax.jit(passk.majority_at_k, static_argnums=2)(votes, correct, k)
  expected = [
    np.mean(
      [
        oracles.vote(row[i : i + k], right[i : i + k])
        for i in range(0, 6 - k + 1, k)
      ]
    )
    for row, right in zip(votes.tolist(), correct.tolist())
  ]
  assert_allclose(ours, expected, atol=1e-6)
  assert ours.dtype == jnp.float32


def test_majority_by_hand():
  def of(votes, correct, k):
    return float(passk.majority_at_k(jnp.array(votes), jnp.array(correct), k))

  right = [True, False, False, True]
  assert of([0, 1, 1, 0], right, 4) == 1  # A tie; the first was seen first.
  assert of([1, 0, 0, 1], [not x for x in right], 4) == 0
  assert of([0, 1, 1, 2], right, 4) == 0
  assert of([0, 1, 1, 0], right, 1) == 0.5
  assert of([0, -1, -1, -1], right, 4) == 1  # One vote is a majority.
  assert of([-1, -1], [True, True], 2) == 0  # None is not.
  assert (
    of([0, 0, 1], [False, False, True], 2) == 0
  )  # The third fills no block.


def test_the_mean_over_blocks_is_without_bias():
  """Over all orders of the answers it is the mean over all draws of k."""
  votes = np.array([0, 0, 1, 1, 2])
  correct = np.array([True, True, False, False, False])
  orders = np.array(list(itertools.permutations(range(5))))
  ours = passk.majority_at_k(votes[orders], correct[orders], 2)
  draws = [
    oracles.vote(votes[list(draw)].tolist(), correct[list(draw)].tolist())
    for draw in itertools.permutations(range(5), 2)
  ]
  assert_allclose(ours.mean(), np.mean(draws), atol=1e-6)


@pytest.mark.parametrize('k', [0, 5])
def test_a_vote_among_more_than_there_are_raises(k):
  with pytest.raises(ValueError, match=f'k={k} needs 1 to 4'):
    passk.majority_at_k(jnp.zeros((2, 4), int), jnp.ones((2, 4), bool), k)


def test_interval():
  mean, low, high = passk.interval(jnp.array([0.0, 1.0, 1.0, 0.0] * 25))
  reach = 1.96 * np.std([0, 1] * 50, ddof=1) / 10
  assert_allclose([mean, low, high], [0.5, 0.5 - reach, 0.5 + reach], rtol=1e-6)


def test_interval_is_cut_and_one_problem_says_nothing():
  assert passk.interval(jnp.array([0.0, 1.0]))[1:] == (0, 1)
  assert tuple(passk.interval(jnp.array([1.0]))) == (1, 0, 1)
  assert tuple(passk.interval(jnp.ones(5))) == (1, 1, 1)
  differences = jnp.array([-1.0, -1.0, 0.0])
  assert float(passk.interval(differences, bounds=(-1.0, 1.0)).low) == -1
  assert passk.interval(jnp.array([0.5]), bounds=(-1.0, 1.0)) == (0.5, -1, 1)
