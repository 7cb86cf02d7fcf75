"""What a compiled program is told besides its arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax import programs
from gft_jax.config import Config, override
from gft_jax.engine import open_engine
from gft_jax.policy import load_policy


def product(a):
  return jnp.sum(jnp.tanh(a @ a.T) @ a)


@pytest.mark.parametrize(
  'dtype, named, found',
  [
    ('float32', None, 'HIGHEST'),
    ('bfloat16', None, 'DEFAULT'),
    ('float32', 'bfloat16', 'DEFAULT'),
  ],
)
def test_products_are_as_precise_as_the_dtype(dtype, named, found):
  """Both ways; and what the user has named stands."""
  operand = jnp.ones((4, 4), dtype)
  jax.config.update('jax_default_matmul_precision', named)
  try:
    with programs.precise(dtype):
      text = jax.jit(jax.grad(product)).lower(operand).as_text()
  finally:
    jax.config.update('jax_default_matmul_precision', None)
  products = text.count('stablehlo.dot_general')
  assert products >= 4 and text.count(found) == 2 * products


def test_a_cpu_computes_the_same_bits():
  operand = jnp.asarray(np.random.default_rng(0).normal(size=(70, 90)))
  once = jax.jit(jax.value_and_grad(product))(operand)
  with programs.precise('float32'):
    again = jax.jit(jax.value_and_grad(product))(operand)
  for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  'dtype, precision', [('float32', 'highest'), ('bfloat16', None)]
)
def test_the_programs_of_a_run_are_told(dtype, precision, monkeypatch):
  config = override(Config(), f'model.dtype={dtype}')
  seen = []

  def drift(*arguments, **settings):
    seen.append(jax.config.jax_default_matmul_precision)
    return {}

  monkeypatch.setattr(programs, 'drift', drift)
  policy = load_policy(config)
  with open_engine(config, policy) as engine:
    engine.drift(policy.params, policy.params, {}, chunk=1)
  assert seen == [precision]
  assert jax.config.jax_default_matmul_precision is None
