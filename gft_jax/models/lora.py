"""Low-rank adapters (LoRA) beside frozen projections.

    y = x W + alpha / r (x A) B                    Hu et al. 2021, Eq. 3

W [in, out] is frozen; A [in, r] and B [r, out] are trained, in float32 whatever
the dtype of W. A starts uniform and B at zero, as in PEFT, so that the first
forward is the frozen model's.

What is trained (`lora_a`, `lora_b`) and what is frozen (all the rest) are two
trees; a model is applied to their `join`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Key

from gft_jax.config import LoraConfig
from gft_jax.types import Array, Params

NAMES = ('lora_a', 'lora_b')


@runtime_checkable
class Adapted(Protocol):
  """A model whose projections may have adapters, such as `Transformer`."""

  @property
  def lora(self) -> LoraConfig:
    """Which projections have adapters, and of which rank."""

  def init(self, rngs: jax.Array, /, *arrays: Array) -> Mapping[str, Params]:
    """Fresh variables, of which 'params' are the parameters."""


class Linear(nn.DenseGeneral):
  """A projection, with an adapter of `rank` r and `alpha` where r is not 0."""

  rank: int = 0
  alpha: float = 1.0

  @nn.compact
  def __call__(
    self, inputs: Float[Array, 'tokens ...']
  ) -> Float[Array, 'tokens ...']:
    """The product, and what the adapter adds to it."""
    outputs = super().__call__(inputs)
    if self.rank:
      outputs += self._adapter(inputs, outputs.shape[1:])
    return checkpoint_name(outputs, 'projection')

  def _adapter(self, inputs, features):
    # torch's default for a linear layer: uniform below 1 / sqrt(fan in).
    uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    a = self.param('lora_a', uniform, (*inputs.shape[1:], self.rank))
    zeros = nn.initializers.zeros
    b = self.param('lora_b', zeros, (self.rank, *features))
    inputs, a, b = promote_dtype(inputs, a, b, dtype=self.dtype)
    low = jnp.tensordot(inputs, a, axes=inputs.ndim - 1)
    return jnp.tensordot(self.alpha / self.rank * low, b, axes=1)


def create(
  model: Adapted,
  key: Key[jax.Array, ''],
  shardings: Callable[[Params], Params] | None = None,
) -> Params:
  """Fresh adapters; the other parameters of the model are not made.

  Args:
    model: its `lora` says what the adapters are.
    key: a JAX key.
    shardings: tree of shapes -> tree of shardings, or None for one device.
  """
  one = jnp.ones((1, 1), jnp.int32)

  def adapters(key):
    leaves = leaves_of(model.init(key, one, one[0])['params'])
    return traverse_util.unflatten_dict(
      {path: leaf for path, leaf in leaves.items() if path[-1] in NAMES}
    )

  where = shardings and shardings(jax.eval_shape(adapters, key))
  return jax.jit(adapters, out_shardings=where)(key)


def join(frozen: Params | None, trained: Params) -> Params:
  """All parameters of a model, as one tree; nothing is copied."""
  if frozen is None:
    return trained
  return traverse_util.unflatten_dict(leaves_of(frozen) | leaves_of(trained))


def merge(model: Adapted, frozen: Params | None, trained: Params) -> Params:
  """Parameters of the same function for the model without adapters.

  W + alpha / r A B, in float32 on the host and rounded to the dtype of W.
  """
  if frozen is None:
    return trained
  rank, alpha = model.lora.rank, model.lora.alpha
  merged, adapters = leaves_of(frozen), leaves_of(trained)
  for projection in {path[:-1] for path in adapters}:
    a, b = (np.asarray(adapters[*projection, name]) for name in NAMES)
    kernel = np.asarray(merged[*projection, 'kernel'])
    layers = len(kernel)
    low_rank = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
    sum_ = kernel + alpha / rank * low_rank.reshape(kernel.shape)
    merged[*projection, 'kernel'] = sum_.astype(kernel.dtype)
  return traverse_util.unflatten_dict(merged)


def leaves_of(params: Params) -> dict[tuple[str, ...], Any]:
  """Path -> leaf: an array, a shape, or a sharding."""
  return {**traverse_util.flatten_dict(params)}
