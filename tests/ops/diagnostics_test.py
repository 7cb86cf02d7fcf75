import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from gft_jax.ops import diagnostics, rectification

P = jnp.array([[0.9, 0.25, 0.01], [0.5, 0.2, 0.4]])
MASK = jnp.array([[1, 1, 0], [1, 1, 1]], bool)


def test_implicit_reward():
  demonstration = jnp.array([[4, 5, 1, 0]] * 5)
  tokens = jnp.array(
    [
      [4, 5, 1, 0],  # the same
      [4, 5, 1, 9],  # differs beyond the length
      [4, 5, 1, 0],  # one token more, equal to the padding
      [4, 6, 1, 0],
      [4, 5, 0, 0],  # a prefix
    ]
  )
  length = jnp.array([3, 3, 4, 3, 2])
  ours = diagnostics.implicit_reward(
    tokens, length, demonstration, jnp.full(5, 3)
  )
  assert ours.tolist() == [1, 1, 0, 0, 0]


def test_inverse_probability():
  logp = jnp.log(P)
  assert_allclose(diagnostics.inverse_probability(logp), 1 / P, rtol=1e-6)
  largest = diagnostics.largest_inverse_probability
  assert_allclose(largest(logp, MASK), 5, rtol=1e-6)
  hidden = jnp.where(MASK, logp, -jnp.inf)
  assert_allclose(largest(hidden, MASK), 5, rtol=1e-6)
  assert largest(logp, jnp.zeros_like(MASK)) == 1


def test_rectified_fraction_is_that_of_the_coefficient():
  logp = jnp.log(P)
  ours = diagnostics.rectified_fraction(logp, MASK, tau=0.3)
  assert (float(ours.total), float(ours.weight)) == (2, 5)
  coefficient = rectification.dynamic_coefficient(logp, tau=0.3)
  assert int((coefficient < 1)[MASK].sum()) == 2
  nothing = jnp.where(MASK, logp, jnp.nan)
  assert diagnostics.rectified_fraction(nothing, MASK, tau=0.3) == ours


def test_effective_groups():
  rewards = jnp.array([[1.0, 0], [1, 1], [1, np.nan], [0, 1], [0, 1]])
  members = jnp.array([[1, 1], [1, 1], [1, 0], [0, 0], [1, 1]], bool)
  ours = diagnostics.effective_groups(rewards, members)
  assert (float(ours.total), float(ours.weight)) == (2, 4)
  parts = [diagnostics.effective_groups(*row) for row in zip(rewards, members)]
  assert sum(parts) == ours


def test_jit():
  ours = jax.jit(diagnostics.effective_groups)(P, MASK)
  assert float(ours.value) == 1
