import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from numpy.testing import assert_allclose

from gft_jax.ops import divergences

LOGP, REFERENCE = [-0.3, -1.0, -5.0, -0.01], [-0.2, -1.5, -0.5, -30.0]


@pytest.mark.parametrize(
  'name, oracle',
  [
    ('k1', lambda p, q: p - q),
    ('abs', lambda p, q: abs(p - q)),
    ('k2', lambda p, q: (p - q) ** 2 / 2),
    ('k3', oracles.k3),
  ],
)
def test_oracle(name, oracle):
  ours = divergences.ESTIMATORS[name](jnp.array(LOGP), jnp.array(REFERENCE))
  assert_allclose(
    ours, [oracle(*pair) for pair in zip(LOGP, REFERENCE)], rtol=1e-5
  )


def test_k3_is_bounded_on_both_sides():
  ours = divergences.k3(jnp.array([-50.0, 0.0]), jnp.array([0.0, -50.0]))
  assert ours.tolist() == [10.0, 10.0]
  gradient = jax.grad(
    lambda l: divergences.k3(l, jnp.array([0.0, -50.0])).sum()
  )(jnp.array([-50.0, 0.0]))
  assert not gradient.any()


@pytest.mark.parametrize('name', ['k1', 'k3'])
def test_unbiased(name):
  """Expectation under p, summed exactly, is KL(p || q)."""
  p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
  estimate = divergences.ESTIMATORS[name](jnp.log(p), jnp.log(q))
  assert_allclose((p * estimate).sum(), (p * np.log(p / q)).sum(), rtol=1e-5)
