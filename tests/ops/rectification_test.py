"""The dynamic coefficient: 1 above τ, p at it and below, and no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from gft_jax.ops.rectification import dynamic_coefficient

# Powers of two, so that exp(log(p)) is p exactly.
P = np.array([[1.0, 0.5], [0.25, 0.125]], np.float32)
LOGP = jnp.log(P)


def test_these_probabilities_are_exact():
  np.testing.assert_array_equal(jnp.exp(LOGP), P)


@pytest.mark.parametrize(
  'tau, expected',
  [
    (0.0, [[1, 1], [1, 1]]),  # SFT
    (0.2, [[1, 1], [1, 0.125]]),
    (0.25, [[1, 1], [0.25, 0.125]]),  # At τ it is p already.
    (0.7, [[1, 0.5], [0.25, 0.125]]),
    (1.0, [[1, 0.5], [0.25, 0.125]]),  # DFT
  ],
)
def test_it_is_one_above_tau_and_p_at_it_and_below(tau, expected):
  np.testing.assert_array_equal(dynamic_coefficient(LOGP, tau=tau), expected)


def test_a_tau_that_is_traced_gives_the_same():
  jitted = jax.jit(lambda logp, tau: dynamic_coefficient(logp, tau=tau))
  for tau in (0.0, 0.25, 0.5, 1.0):
    np.testing.assert_array_equal(
      jitted(LOGP, jnp.float32(tau)), dynamic_coefficient(LOGP, tau=tau)
    )


@pytest.mark.parametrize('tau', [0.0, 0.3, 1.0])
def test_no_gradient_passes_to_the_policy(tau):
  def total(logp):
    return dynamic_coefficient(logp, tau=tau).sum()

  np.testing.assert_array_equal(jax.grad(total)(LOGP), np.zeros((2, 2)))
  # So the slope of C log p by log p is C, not C + p log p.
  slope = jax.grad(lambda x: (dynamic_coefficient(x, tau=tau) * x).sum())(LOGP)
  assert_allclose(slope, dynamic_coefficient(LOGP, tau=tau), rtol=1e-6)


def test_an_impossible_token_counts_nothing_at_any_tau():
  impossible = jnp.array([-jnp.inf, -200.0])
  for tau in (0.0, 0.7, 1.0):
    assert dynamic_coefficient(impossible, tau=tau).tolist() == [0, 0]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_it_has_the_shape_and_the_type_of_what_it_is_given(dtype):
  found = dynamic_coefficient(LOGP.astype(dtype), tau=0.3)
  assert found.shape == (2, 2) and found.dtype == dtype
  assert dynamic_coefficient(jnp.float32(0.0), tau=0.3).shape == ()
