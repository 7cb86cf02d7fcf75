"""Masked reductions that add exactly: a mean is a total and a weight."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

# Mapped axes of devices to add over, under pmap or shard_map; None: no mapping.
AxisName = str | tuple[str, ...] | None


class WeightedMean(NamedTuple):
  """A mean that has not been divided yet.

  Means of micro-batches, devices and evaluation batches add exactly as long as
  nobody divides: `(a + b).value` is the mean over both, whatever their sizes.

  Attributes:
    total: [...] sum of the counted values.
    weight: [...] how many were counted; same shape as total.
  """

  total: chex.Array
  weight: chex.Array

  def __add__(self, other: 'WeightedMean') -> 'WeightedMean':
    return WeightedMean(self.total + other.total, self.weight + other.weight)

  def __radd__(self, other: int) -> 'WeightedMean':
    """Starts the built-in sum, which adds the first term to 0."""
    return self if other == 0 else NotImplemented

  @property
  def value(self) -> chex.Array:
    """total / weight; 0 where nothing was counted.

    The denominator is made safe before the division: selecting only after it
    would differentiate to NaN.
    """
    counted = self.weight > 0
    denominator = jnp.where(counted, self.weight, 1)
    return jnp.where(counted, self.total / denominator, 0)


def select(values: chex.Array, mask: chex.Array) -> chex.Array:
  """Values where the mask holds, 0 elsewhere.

  Multiplying by the mask would turn one -inf under it into NaN. Use it on both
  sides of a formula: before, so that no gradient runs through a masked -inf;
  after, so that masked entries count for nothing.

  Args:
    values: [...].
    mask: [...], true where a value counts.

  Returns:
    [...] in the dtype of `values`.
  """
  chex.assert_equal_shape([values, mask])

  return jnp.where(jnp.asarray(mask, bool), values, 0)


def token_mean(
  values: chex.Array, mask: chex.Array, *, axis_name: AxisName = None
) -> WeightedMean:
  """Mean over all tokens: Σ m x / Σ m.

  Args:
    values: [..., T]. bfloat16 and float16 are accumulated in float32.
    mask: [..., T], true where a token counts.
    axis_name: mapped axes of devices to add over, under pmap or shard_map.

  Returns:
    Scalars; weight = number of tokens.

  Source: verl `agg_loss(token-mean)`, core_algos.py:591-624 of ZJU-OmniAI/GFT.
  Deviations: no 1e-8 in the denominator; the official trainer averages such
  means over micro-batches and devices, these add.
  """
  rows = _rows(values, mask)
  return _total(rows.total, rows.weight, axis_name)


def sequence_mean(
  values: chex.Array, mask: chex.Array, *, axis_name: AxisName = None
) -> WeightedMean:
  """Mean over rows of the row's token mean: Σ_rows (Σ m x / Σ m) / rows.

  Args:
    values: [..., T].
    mask: [..., T].
    axis_name: as in `token_mean`.

  Returns:
    Scalars; weight = number of rows with at least one token.

  Source: verl `agg_loss(seq-mean-token-mean)`, which gives NaN for a batch
  with an empty row; here an empty row weighs nothing.
  """
  rows = _rows(values, mask)
  return _total(rows.value, rows.weight > 0, axis_name)


def token_sum(
  values: chex.Array, mask: chex.Array, *, axis_name: AxisName = None
) -> WeightedMean:
  """Mean over rows of the row's token sum: Σ_rows Σ m x / rows.

  Args:
    values: [..., T].
    mask: [..., T].
    axis_name: as in `token_mean`.

  Returns:
    Scalars; weight = number of rows with at least one token.

  Source: verl `agg_loss(seq-mean-token-sum)`; this is the sum over t of
  Eq. 21. verl counts empty rows in the denominator, this does not.
  """
  rows = _rows(values, mask)
  return _total(rows.total, rows.weight > 0, axis_name)


REDUCTIONS = {
  'token_mean': token_mean,
  'sequence_mean': sequence_mean,
  'token_sum': token_sum,
}


def _rows(values: chex.Array, mask: chex.Array) -> WeightedMean:
  """Total and number of tokens of each row, in float32 or wider."""
  values = select(values, mask)
  dtype = jnp.promote_types(values.dtype, jnp.float32)
  return WeightedMean(
    values.sum(axis=-1, dtype=dtype),
    jnp.asarray(mask, bool).sum(axis=-1, dtype=dtype),
  )


def _total(
  totals: chex.Array, weights: chex.Array, axis_name: AxisName
) -> WeightedMean:
  mean = WeightedMean(totals.sum(), weights.sum(dtype=totals.dtype))
  return mean if axis_name is None else jax.lax.psum(mean, axis_name)
