"""Hidden states to log-probabilities, without the logits ever existing.

Training, behaviour, reference, SFT and evaluation all pass through here. The
logits of a few tokens at a time are made, used and dropped, and made again in
the backward pass: memory is chunk x V, not N x V.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

# Columns of the head whose gradient is added at one time on a CPU.
VOCABULARY_BLOCK = 8192


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


def fused_token_loss(
  hidden: chex.Array,
  head: chex.Array,
  targets: chex.Array,
  token_loss: Callable[[chex.Array, chex.Array, Any], chex.Array],
  inputs: Any,
  *,
  chunk: int,
  temperature: float = 1.0,
) -> tuple[chex.Array, chex.Array, chex.Array]:
  """A sum of token losses whose gradient is made in the forward pass.

  Where a token's loss depends on its own log-probability and entropy alone, as
  every objective's here does, its gradient is known as soon as its logits are:
  they are made once, not twice as by `target_logprobs`.

  Args:
    hidden: [..., D].
    head: [D, V].
    targets: [...] integers in [0, V).
    token_loss: (logp [n], entropy [n], inputs) -> [n], of n tokens, weights and
      denominators included.
    inputs: arrays [..., *] of each token, which get no gradient.
    chunk: as in `target_logprobs`.
    temperature: likewise.

  Returns:
    The sum, which differentiates by hidden and head; logp [...] and entropy
    [...], which do not.
  """
  chex.assert_rank(head, 2)
  chex.assert_shape(hidden, (*jnp.shape(targets), head.shape[0]))
  chex.assert_scalar_positive(chunk)
  chex.assert_scalar_positive(temperature)

  inputs = jax.lax.stop_gradient(inputs)
  total, logp, entropy = _fused(
    token_loss, chunk, temperature, hidden, head, targets, inputs
  )
  return total, jax.lax.stop_gradient(logp), jax.lax.stop_gradient(entropy)


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
    read = _read(chunk_logits(hidden, head, temperature), targets)
    return carry, (read.logp, read.entropy, read.log_z)

  _, results = map_chunks(
    body, None, (hidden, targets), ndim=targets.ndim, chunk=chunk
  )
  return results


def _forward_vjp(chunk, temperature, hidden, head, targets):
  logp, entropy, log_z = _forward(chunk, temperature, hidden, head, targets)
  return (logp, entropy), (hidden, head, targets, entropy, log_z)


def _backward_vjp(chunk, temperature, residuals, cotangents):
  hidden, head, targets, entropy, log_z = residuals

  def body(head_gradient, part):
    hidden, targets, entropy, log_z, g, h = part
    logq = chunk_logits(hidden, head, temperature) - log_z[:, None]
    pull = _pull(jnp.exp(logq), logq, targets, entropy, g, h)
    return _products(head_gradient, hidden, head, pull / temperature)

  head_gradient, hidden_gradient = map_chunks(
    body,
    jnp.zeros(head.shape, _wide(hidden, head)),
    (hidden, targets, entropy, log_z, *cotangents),
    ndim=targets.ndim,
    chunk=chunk,
  )
  return hidden_gradient, head_gradient.astype(head.dtype), None


_target_logprobs.defvjp(_forward_vjp, _backward_vjp)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused(token_loss, chunk, temperature, hidden, head, targets, inputs):
  logp, entropy, _ = _forward(chunk, temperature, hidden, head, targets)
  return token_loss(logp, entropy, inputs).sum(), logp, entropy


def _fused_forward(
  token_loss, chunk, temperature, hidden, head, targets, inputs
):
  def body(head_gradient, part):
    hidden, targets, inputs = part
    logits = chunk_logits(hidden, head, temperature)
    read = _read(logits, targets)
    loss, slope = jax.vjp(
      lambda l, e: token_loss(l, e, inputs), read.logp, read.entropy
    )
    g, h = slope(jnp.ones_like(loss))
    logq = logits - read.log_z[:, None]
    pull = _pull(read.p, logq, targets, read.entropy, g, h)
    head_gradient, dhidden = _products(
      head_gradient, hidden, head, pull / temperature
    )
    return head_gradient, (loss, read.logp, read.entropy, dhidden)

  head_gradient, (loss, logp, entropy, hidden_gradient) = map_chunks(
    body,
    jnp.zeros(head.shape, _wide(hidden, head)),
    (hidden, targets, inputs),
    ndim=targets.ndim,
    chunk=chunk,
  )
  gradients = hidden_gradient, head_gradient.astype(head.dtype)
  return (loss.sum(), logp, entropy), gradients


def _fused_backward(token_loss, chunk, temperature, gradients, cotangents):
  del token_loss, chunk, temperature
  scale, _, _ = cotangents  # The others are stopped by the caller.
  dhidden, dhead = (
    (x * scale.astype(x.dtype)).astype(x.dtype) for x in gradients
  )
  return dhidden, dhead, None, None


_fused.defvjp(_fused_forward, _fused_backward)


class _Read(NamedTuple):
  logp: chex.Array  # [n] of the targets
  entropy: chex.Array  # [n]
  log_z: chex.Array  # [n], log of the sum of exp
  p: chex.Array  # [n, V]


def _read(logits, targets):
  """One pass of exp over the logits [n, V].

  The maximum is read outside of the softmax too, in log_z: XLA's CPU backend
  would otherwise fuse it with the product before it, at half the speed
  (measured, jax 0.10.2).
  """
  largest = logits.max(axis=-1)
  shifted = logits - largest[:, None]
  weights = jnp.exp(shifted)
  total = weights.sum(axis=-1)
  log_z = largest + jnp.log(total)
  chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
  entropy = jnp.log(total) - (weights * shifted).sum(axis=-1) / total
  return _Read(chosen - log_z, entropy, log_z, weights / total[:, None])


def _pull(p, logq, targets, entropy, g, h):
  """[n, V] gradient by the tempered logits, for cotangents g and h [n]."""
  onehot = jax.nn.one_hot(targets, logq.shape[-1], dtype=p.dtype)
  share = g[:, None] + h[:, None] * (logq + entropy[:, None])
  return g[:, None] * onehot - share * p


def _products(head_gradient, hidden, head, pull):
  """Adds to the head's gradient; gives the hidden states' [n, D].

  The matrix products run in the dtype of the forward pass. On a CPU the sum
  goes over the vocabulary block by block: the product of one block is added
  while it is in the cache, and no second array [D, V] exists. Accelerators
  accumulate inside of the product, and may have sharded the vocabulary.
  """
  pull = pull.astype(jnp.result_type(hidden, head))
  product = functools.partial(
    jnp.dot, preferred_element_type=head_gradient.dtype
  )
  dhidden = product(pull, head.T).astype(hidden.dtype)

  def whole(total, hidden, pull):
    return total + product(hidden.T, pull)

  def in_blocks(total, hidden, pull):
    width, vocabulary = total.shape
    count = vocabulary // VOCABULARY_BLOCK

    def add(start, size, total):
      part = jax.lax.dynamic_slice(pull, (0, start), (len(pull), size))
      old = jax.lax.dynamic_slice(total, (0, start), (width, size))
      new = old + product(hidden.T, part)
      return jax.lax.dynamic_update_slice(total, new, (0, start))

    total = jax.lax.fori_loop(
      0,
      count,
      lambda i, total: add(i * VOCABULARY_BLOCK, VOCABULARY_BLOCK, total),
      total,
    )
    done = count * VOCABULARY_BLOCK
    return total if done == vocabulary else add(done, vocabulary - done, total)

  if head.shape[1] <= VOCABULARY_BLOCK:
    return whole(head_gradient, hidden, pull), dhidden
  head_gradient = jax.lax.platform_dependent(
    head_gradient, hidden, pull, cpu=in_blocks, default=whole
  )
  return head_gradient, dhidden


def _wide(hidden, head):
  return jnp.promote_types(jnp.result_type(hidden, head), jnp.float32)
