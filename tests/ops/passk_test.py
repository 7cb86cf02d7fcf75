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


def test_interval():
  mean, low, high = passk.interval(jnp.array([0.0, 1.0, 1.0, 0.0] * 25))
  reach = 1.96 * np.std([0, 1] * 50, ddof=1) / 10
  assert_allclose([mean, low, high], [0.5, 0.5 - reach, 0.5 + reach], rtol=1e-6)


def test_interval_is_cut_and_one_problem_says_nothing():
  assert passk.interval(jnp.array([0.0, 1.0]))[1:] == (0, 1)
  assert tuple(passk.interval(jnp.array([1.0]))) == (1, 0, 1)
  assert tuple(passk.interval(jnp.ones(5))) == (1, 1, 1)
