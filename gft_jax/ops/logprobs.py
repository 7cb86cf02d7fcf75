"""Hidden states to log-probabilities, without the logits ever existing.

Training, behaviour, reference, SFT and evaluation all pass through here. The
logits of a few tokens at a time are made, used and dropped, and made again in
the backward pass: memory is chunk x V, not N x V.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp


def target_logprobs(
  hidden: chex.Array,
  head: chex.Array,
  targets: chex.Array,
  *,
  chunk: int,
  temperature: float = 1.0,
) -> tuple[chex.Array, chex.Array]:
  """Log-probability of each target, and entropy of its distribution.

      z = hidden head / temperature;  p = softmax(z)
      logp = z_target - log Σ exp z;  H = -Σ p log p

  Backward, per chunk, for the cotangents g of logp and h of H:

      dz = g (onehot - p) - h p (log p + H)

  Args:
    hidden: [..., D]; its product with the head is accumulated in float32.
    head: [D, V].
    targets: [...] integers in [0, V).
    chunk: tokens whose logits exist at one time, over all devices of a jit;
      more than there are tokens is the same as all of them.
    temperature: positive; static, no gradient.

  Returns:
    (logp [...], entropy [...]) in nats, float32 (float64 for float64 input).
    The gradients of hidden and head have their dtypes; the head's is
    accumulated over chunks in float32. To differentiate a shard_map around
    this, give that shard_map check_vma=False.
  """
  chex.assert_rank(head, 2)
  chex.assert_shape(hidden, (*jnp.shape(targets), head.shape[0]))
  chex.assert_scalar_positive(chunk)
  chex.assert_scalar_positive(temperature)

  return _target_logprobs(chunk, temperature, hidden, head, targets)


def map_chunks(
  body: Callable[..., Any], init: Any, tokens: Any, *, ndim: int, chunk: int
) -> tuple[Any, Any]:
  """Scans `body` over parts of at most `chunk` tokens.

  The parts are of equal size, and the last one is padded with zeros. Each is
  a comb through all the tokens, not a run of them: when the tokens are
  sharded, each device then finds a share of every part on itself.

  Args:
    body: (carry, part) -> (carry, result); the arrays of `part` and `result`
      have one leading axis of tokens.
    init: first carry.
    tokens: arrays [..., *] whose first `ndim` axes count tokens.
    ndim: how many axes count tokens.
    chunk: largest size of a part.

  Returns:
    (last carry, results with the original token axes).
  """
  shape = jax.tree.leaves(tokens)[0].shape[:ndim]
  count = math.prod(shape)
  parts = max(1, -(-count // chunk))
  size = -(-count // parts)

  def split(x):
    x = x.reshape(-1, *x.shape[ndim:])
    padding = size * parts - x.shape[0]
    if padding:
      x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return jnp.moveaxis(x.reshape(size, parts, *x.shape[1:]), 1, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, 1).reshape(size * parts, *x.shape[2:])
    return x[:count].reshape(*shape, *x.shape[1:])

  carry, results = jax.lax.scan(body, init, jax.tree.map(split, tokens))
  return carry, jax.tree.map(join, results)


def chunk_logits(
  hidden: chex.Array, head: chex.Array, temperature: float = 1.0
) -> chex.Array:
  """[..., V] logits / temperature, in float32 or wider, of a few tokens."""
  dtype = jnp.promote_types(jnp.result_type(hidden, head), jnp.float32)
  return jnp.dot(hidden, head, preferred_element_type=dtype) / temperature


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _target_logprobs(chunk, temperature, hidden, head, targets):
  logp, entropy, _ = _forward(chunk, temperature, hidden, head, targets)
  return logp, entropy


def _forward(chunk, temperature, hidden, head, targets):
  def body(carry, part):
    hidden, targets = part
    logits = chunk_logits(hidden, head, temperature)
    largest = logits.max(axis=-1)
    shifted = logits - largest[:, None]
    log_sum = jnp.log(jnp.exp(shifted).sum(axis=-1))
    logq = shifted - log_sum[:, None]
    logp = jnp.take_along_axis(logq, targets[:, None], axis=-1)[:, 0]
    entropy = -(jnp.exp(logq) * logq).sum(axis=-1)
    return carry, (logp, entropy, largest + log_sum)

  _, results = map_chunks(
    body, None, (hidden, targets), ndim=targets.ndim, chunk=chunk
  )
  return results


def _forward_vjp(chunk, temperature, hidden, head, targets):
  logp, entropy, log_z = _forward(chunk, temperature, hidden, head, targets)
  return (logp, entropy), (hidden, head, targets, entropy, log_z)


def _backward_vjp(chunk, temperature, residuals, cotangents):
  hidden, head, targets, entropy, log_z = residuals
  dtype = jnp.result_type(hidden, head)
  wide = jnp.promote_types(dtype, jnp.float32)

  def body(head_gradient, part):
    hidden, targets, entropy, log_z, g, h = part
    logq = chunk_logits(hidden, head, temperature) - log_z[:, None]
    p = jnp.exp(logq)
    onehot = jax.nn.one_hot(targets, head.shape[-1], dtype=p.dtype)
    dlogits = g[:, None] * (onehot - p)
    dlogits -= h[:, None] * p * (logq + entropy[:, None])
    # The matrix products run in the dtype of the forward pass.
    dlogits = (dlogits / temperature).astype(dtype)
    dhidden = jnp.dot(dlogits, head.T, preferred_element_type=wide)
    dhead = jnp.dot(hidden.T, dlogits, preferred_element_type=wide)
    return head_gradient + dhead, dhidden.astype(hidden.dtype)

  head_gradient, hidden_gradient = map_chunks(
    body,
    jnp.zeros(head.shape, wide),
    (hidden, targets, entropy, log_z, *cotangents),
    ndim=targets.ndim,
    chunk=chunk,
  )
  return hidden_gradient, head_gradient.astype(head.dtype), None


_target_logprobs.defvjp(_forward_vjp, _backward_vjp)
