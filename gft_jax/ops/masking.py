"""Masked reductions that add exactly: a mean is a total and a weight."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Num, Shaped

from gft_jax.types import Array

# Mapped axes of devices to add over, under pmap or shard_map; None: no mapping.
AxisName = str | tuple[str, ...] | None


class WeightedMean(NamedTuple):
  """A mean that has not been divided yet.

  Means of micro-batches, devices and evaluation batches add exactly as long as
  nobody divides: `(a + b).value` is the mean over both, whatever their sizes.

  Attributes:
    total: sum of the counted values.
    weight: how many were counted.
  """

  total: Num[Array, '*batch']
  weight: Num[Array, '*batch']

  # pyrefly: ignore[bad-override]  # Two means make one; tuples would join.
  def __add__(self, other: 'WeightedMean') -> 'WeightedMean':
    return WeightedMean(self.total + other.total, self.weight + other.weight)

  def __radd__(self, other: int) -> 'WeightedMean':
    """Starts the built-in sum, which adds the first term to 0."""
    return self if other == 0 else NotImplemented

  @property
  def value(self) -> Num[Array, '...']:
    """total / weight; 0 where nothing was counted.

    The denominator is made safe before the division: selecting only after it
    would differentiate to NaN.
    """
    counted = self.weight > 0
    denominator = jnp.where(counted, self.weight, 1)
    return jnp.where(counted, self.total / denominator, 0)


def select(
  values: Num[Array, '*batch'], mask: Shaped[Array, '*batch']
) -> Num[Array, '*batch']:
  """Values where the mask holds, 0 elsewhere.

  Multiplying by the mask would turn one -inf under it into NaN. Use it on both
  sides of a formula: before, so that no gradient runs through a masked -inf;
  after, so that masked entries count for nothing.

  Args:
    values: anything under the mask, also NaN and infinity.
    mask: true, or not 0, where a value counts.

  Returns:
    In the dtype of `values`.
  """
  chex.assert_equal_shape([values, mask])

  return jnp.where(jnp.asarray(mask, bool), values, 0)


def token_mean(
  values: Num[Array, '*batch T'],
  mask: Shaped[Array, '*batch T'],
  *,
  axis_name: AxisName = None,
) -> WeightedMean:
  """Mean over all tokens: Σ m x / Σ m.

  Args:
    values: bfloat16 and float16 are accumulated in float32.
    mask: true, or not 0, where a token counts.
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
  values: Num[Array, '*batch T'],
  mask: Shaped[Array, '*batch T'],
  *,
  axis_name: AxisName = None,
) -> WeightedMean:
  """Mean over rows of the row's token mean: Σ_rows (Σ m x / Σ m) / rows.

  Args:
    values: as in `token_mean`; so the others.
    mask:
    axis_name:

  Returns:
    Scalars; weight = number of rows with at least one token.

  Source: verl `agg_loss(seq-mean-token-mean)`, which gives NaN for a batch
  with an empty row; here an empty row weighs nothing.
  """
  rows = _rows(values, mask)
  return _total(rows.value, rows.weight > 0, axis_name)


def token_sum(
  values: Num[Array, '*batch T'],
  mask: Shaped[Array, '*batch T'],
  *,
  axis_name: AxisName = None,
) -> WeightedMean:
  """Mean over rows of the row's token sum: Σ_rows Σ m x / rows.

  Args:
    values: as in `token_mean`; so the others.
    mask:
    axis_name:

  Returns:
    Scalars; weight = number of rows with at least one token.

  Source: verl `agg_loss(seq-mean-token-sum)`; this is the sum over t of
  Eq. 21. verl counts empty rows in the denominator, this does not.
  """
  rows = _rows(values, mask)
  return _total(rows.total, rows.weight > 0, axis_name)


def length_mean(
  values: Num[Array, '*batch T'],
  mask: Shaped[Array, '*batch T'],
  *,
  axis_name: AxisName = None,
) -> WeightedMean:
  """Mean over rows of the row's token sum over T: Σ_rows (Σ m x / T) / rows.

  Every token weighs the same whatever the length of its response, so a long
  wrong answer is not pushed less than a short one. T is the allocated length.

  Args:
    values: as in `token_mean`; so the others.
    mask:
    axis_name:

  Returns:
    Scalars; weight = number of rows with at least one token.

  Source: Dr. GRPO (arXiv 2503.20783); TRL's loss_type dr_grpo,
  grpo_trainer.py:2991-3150 of huggingface/trl at f2cd577, which counts empty rows.
  """
  total, rows = token_sum(values, mask, axis_name=axis_name)
  return WeightedMean(total / jnp.shape(values)[-1], rows)


def length_sum(
  values: Num[Array, '*batch T'],
  mask: Shaped[Array, '*batch T'],
  *,
  axis_name: AxisName = None,
) -> WeightedMean:
  """Sum over rows of the row's token sum over T: Σ_rows Σ m x / T.

  Not a mean: the weight is 1 however many rows there are, and parts of a batch
  add by their totals alone.

  Args:
    values: as in `token_mean`; so the others.
    mask:
    axis_name:

  Returns:
    Scalars; weight = 1.

  Source: verl `agg_loss(seq-mean-token-sum-norm)`, core_algos.py:591-624 of
  ZJU-OmniAI/GFT, and loss_remove_token_mean of LUFFY, mix_core_alg.py:69-251
  of ElliottYan/LUFFY.
  """
  total = length_mean(values, mask, axis_name=axis_name).total
  return WeightedMean(total, jnp.ones_like(total))


REDUCTIONS = {
  'token_mean': token_mean,
  'sequence_mean': sequence_mean,
  'token_sum': token_sum,
  'length_mean': length_mean,
  'length_sum': length_sum,
}


def _rows(
  values: Num[Array, '*batch T'], mask: Shaped[Array, '*batch T']
) -> WeightedMean:
  """Total and number of tokens of each row, in float32 or wider."""
  values = select(values, mask)
  dtype = jnp.promote_types(values.dtype, jnp.float32)
  return WeightedMean(
    values.sum(axis=-1, dtype=dtype),
    jnp.asarray(mask, bool).sum(axis=-1, dtype=dtype),
  )


def _total(
  totals: Num[Array, '*batch'], weights: Array, axis_name: AxisName
) -> WeightedMean:
  mean = WeightedMean(totals.sum(), weights.sum(dtype=totals.dtype))
  return mean if axis_name is None else jax.lax.psum(mean, axis_name)
