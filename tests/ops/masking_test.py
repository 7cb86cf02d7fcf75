import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jaxtyping import TypeCheckError

from gft_jax.ops import masking
from gft_jax.ops.masking import WeightedMean

VALUES = [[1.0, -2.0, 4.0], [3.0, 9.0, 9.0], [7.0, 7.0, 7.0]]
MASK = [[1, 1, 1], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
  'name, total, weight, value',
  [
    ('token_mean', 6.0, 4.0, 1.5),
    ('sequence_mean', 4.0, 2.0, 2.0),  # Row means 1 and 3.
    ('token_sum', 6.0, 2.0, 3.0),
    ('length_mean', 2.0, 2.0, 1.0),  # T = 3.
    ('length_sum', 2.0, 1.0, 2.0),
  ],
)
def test_literals(name, total, weight, value):
  ours = masking.REDUCTIONS[name](jnp.array(VALUES), jnp.array(MASK))
  assert (float(ours.total), float(ours.weight)) == (total, weight)
  assert float(ours.value) == value
  assert getattr(oracles, name)(VALUES, MASK) == (total, weight)


@pytest.mark.parametrize('name', masking.REDUCTIONS)
def test_parts_add_to_the_whole(name):
  reduction = masking.REDUCTIONS[name]
  values, mask = jnp.array(VALUES), jnp.array(MASK, bool)
  parts = [reduction(values[b : b + 1], mask[b : b + 1]) for b in range(3)]
  whole, added = reduction(values, mask), sum(parts)
  assert isinstance(added, WeightedMean)
  assert added.total == whole.total
  # A sum has one weight whatever it sums; see `length_sum`.
  assert added.weight == (3 if name == 'length_sum' else whole.weight)


def test_only_zero_starts_a_sum():
  with pytest.raises(TypeError):
    1 + WeightedMean(jnp.ones(()), jnp.ones(()))


@pytest.mark.parametrize('name', masking.REDUCTIONS)
def test_empty_mask_is_zero_and_so_is_its_gradient(name):
  def loss(values):
    return masking.REDUCTIONS[name](values, jnp.zeros((2, 3))).value

  values = jnp.full((2, 3), -jnp.inf)
  assert float(loss(values)) == 0
  assert jax.grad(loss)(values).tolist() == [[0, 0, 0]] * 2


def test_gradient_of_an_empty_total_is_finite():
  """A select after the division alone would differentiate to NaN."""
  gradient = jax.grad(lambda total: WeightedMean(total, jnp.zeros(())).value)
  assert float(gradient(jnp.ones(()))) == 0


# XLA turns a product with a bool into a select; with a float32 it cannot.
@pytest.mark.parametrize('dtype', ['bool', 'float32'])
@pytest.mark.parametrize('bad', [-np.inf, np.inf, np.nan])
@pytest.mark.parametrize('name', masking.REDUCTIONS)
def test_what_is_masked_does_not_matter(name, bad, dtype):
  values, mask = jnp.array(VALUES), jnp.array(MASK, dtype)
  hidden = jnp.where(mask > 0, values, bad)
  loss = lambda v: masking.REDUCTIONS[name](v, mask).value  # noqa: E731
  assert loss(hidden) == loss(values)
  assert (jax.grad(loss)(hidden) == jax.grad(loss)(values)).all()


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_low_precision_is_added_in_float32(dtype):
  """bfloat16 cannot count past 256."""
  ones = jnp.ones((4, 1000), dtype)
  mean = masking.token_mean(ones, ones)
  assert mean.total.dtype == mean.weight.dtype == jnp.float32
  assert float(mean.total) == float(mean.weight) == 4000


def test_float64_stays():
  with jax.enable_x64(True):
    mean = masking.sequence_mean(jnp.ones((1, 2)), jnp.ones((1, 2)))
    assert mean.total.dtype == mean.weight.dtype == jnp.float64


def test_shapes_must_agree():
  with pytest.raises(TypeCheckError):
    masking.token_mean(jnp.ones((2, 3)), jnp.ones((2, 1)))
