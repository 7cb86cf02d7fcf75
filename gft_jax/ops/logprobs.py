"""Hidden states to log-probabilities, without the logits ever existing.

Training, behaviour, reference, SFT and evaluation all pass through here. The
logits of a few tokens at a time are made, used and dropped: memory is chunk x V,
not N x V.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from gft_jax.types import Array, Tree

Carry = TypeVar('Carry')
Part = TypeVar('Part')
Result = TypeVar('Result')
# Columns of the head that a CPU works through at one time.
VOCABULARY_BLOCK = 8192


@jax.named_scope('head')
def target_logprobs(
  hidden: Float[Array, '*batch D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, '*batch'],
  *,
  chunk: int,
  temperature: float = 1.0,
) -> tuple[Float[Array, '*batch'], Float[Array, '*batch']]:
  """Log-probability of each target, and entropy of its distribution.

      z = hidden head / temperature;  p = softmax(z)
      logp = z_target - log Σ exp z;  H = -Σ p log p

  Backward, per chunk, for the cotangents g of logp and h of H:

      dz = g (onehot - p) - h p (log p + H)

  Args:
    hidden: its product with the head is accumulated in float32.
    head: what turns a state into logits.
    targets: in [0, V).
    chunk: tokens whose logits exist at one time, over all devices of a jit, or
      on each of a shard_map; more than there are tokens is all of them.
    temperature: positive; static, no gradient.

  Returns:
    (logp, entropy) in nats, float32 (float64 for float64 input).
    The gradients of hidden and head have their dtypes; the head's is
    accumulated over chunks in float32. To differentiate a shard_map around
    this, give that shard_map check_vma=False.
  """
  chex.assert_rank(head, 2)
  chex.assert_shape(hidden, (*jnp.shape(targets), head.shape[0]))
  chex.assert_scalar_positive(chunk)
  chex.assert_scalar_positive(temperature)

  return _target_logprobs(chunk, temperature, hidden, head, targets)


@jax.named_scope('head')
def fused_token_loss(
  hidden: Float[Array, '*batch D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, '*batch'],
  token_loss: Callable[[Array, Array, Tree], Array],
  inputs: Tree,
  *,
  chunk: int,
  temperature: float = 1.0,
) -> tuple[Float[Array, ''], Float[Array, '*batch'], Float[Array, '*batch']]:
  """A sum of token losses whose gradient is made in the forward pass.

  Where a token's loss depends on its own log-probability and entropy alone, as
  every objective's here does, its gradient is known as soon as its logits are:
  they are made once, not twice as by `target_logprobs`.

  Args:
    hidden: as in `target_logprobs`; so the next two.
    head:
    targets:
    token_loss: (logp [n], entropy [n], inputs) -> [n], of n tokens, weights and
      denominators included.
    inputs: arrays [*batch, ...] of each token, which get no gradient.
    chunk: as in `target_logprobs`.
    temperature: likewise.

  Returns:
    The sum, which differentiates by hidden and head; logp and entropy, which
    do not.
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
  body: Callable[[Carry, Part], tuple[Carry, Result]],
  init: Carry,
  tokens: Part,
  *,
  ndim: int,
  chunk: int,
) -> tuple[Carry, Result]:
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
  hidden: Float[Array, '*batch D'],
  head: Float[Array, 'D V'],
  temperature: float = 1.0,
) -> Float[Array, '*batch V']:
  """Logits / temperature, in float32 or wider, of a few tokens."""
  dtype = jnp.promote_types(jnp.result_type(hidden, head), jnp.float32)
  return jnp.dot(hidden, head, preferred_element_type=dtype) / temperature


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _target_logprobs(chunk, temperature, hidden, head, targets):
  logp, entropy, _ = _forward(chunk, temperature, hidden, head, targets)
  return logp, entropy


def _forward(chunk, temperature, hidden, head, targets):
  def run(width, hidden, head, targets):
    def body(carry, part):
      hidden, targets = part
      read, _ = _read(hidden, head, targets, temperature, width, keep=False)
      return carry, read

    return map_chunks(
      body, None, (hidden, targets), ndim=targets.ndim, chunk=chunk
    )[1]

  return _in_blocks(run, hidden, head, targets)


def _forward_vjp(chunk, temperature, hidden, head, targets):
  read = _forward(chunk, temperature, hidden, head, targets)
  return (read.logp, read.entropy), (hidden, head, targets, read)


def _backward_vjp(chunk, temperature, residuals, cotangents):
  def run(width, hidden, head, targets, read, cotangents):
    def body(head_gradient, part):
      hidden, targets, read, cotangents = part
      pull = _Pull(hidden, targets, read, *cotangents)
      return _pull_back(head_gradient, head, pull, temperature, width)

    head_gradient, hidden_gradient = map_chunks(
      body,
      jnp.zeros(head.shape, _wide(hidden, head)),
      (hidden, targets, read, cotangents),
      ndim=targets.ndim,
      chunk=chunk,
    )
    return hidden_gradient, head_gradient.astype(head.dtype)

  return *_in_blocks(run, *residuals, cotangents), None


_target_logprobs.defvjp(_forward_vjp, _backward_vjp)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused(token_loss, chunk, temperature, hidden, head, targets, inputs):
  logp, entropy, _ = _forward(chunk, temperature, hidden, head, targets)
  return token_loss(logp, entropy, inputs).sum(), logp, entropy


def _fused_forward(
  token_loss, chunk, temperature, hidden, head, targets, inputs
):
  def run(width, hidden, head, targets, inputs):
    def body(head_gradient, part):
      hidden, targets, inputs = part
      read, logits = _read(hidden, head, targets, temperature, width, keep=True)
      loss, slope = jax.vjp(
        lambda l, e: token_loss(l, e, inputs), read.logp, read.entropy
      )
      g, h = slope(jnp.ones_like(loss))
      pull = _Pull(hidden, targets, read, g, h, logits)
      head_gradient, dhidden = _pull_back(
        head_gradient, head, pull, temperature, width
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

  return _in_blocks(run, hidden, head, targets, inputs)


def _fused_backward(token_loss, chunk, temperature, gradients, cotangents):
  del token_loss, chunk, temperature
  scale, _, _ = cotangents  # The others are stopped by the caller.
  dhidden, dhead = (
    (x * scale.astype(x.dtype)).astype(x.dtype) for x in gradients
  )
  return dhidden, dhead, None, None


_fused.defvjp(_fused_forward, _fused_backward)


class _Read(NamedTuple):
  """What the logits of n tokens say."""

  logp: Float[Array, ' n']  # of the targets
  entropy: Float[Array, ' n']
  log_z: Float[Array, ' n']  # log of the sum of exp


class _Pull(NamedTuple):
  """What the gradients of n tokens are made of."""

  hidden: Float[Array, 'n D']
  targets: Int[Array, ' n']
  read: _Read
  g: Float[Array, ' n']  # cotangent of logp
  h: Float[Array, ' n']  # cotangent of the entropy
  logits: Float[Array, 'n V'] | None = None  # None: they are made again


def _in_blocks(run, *arrays):
  """`run(width, *arrays)`, where `width` columns of the head go at one time.

  On a CPU a block of logits is used again while it is in the cache: 1.3 times
  the speed at V 151,936 (measured). Accelerators fuse the passes themselves,
  and may have sharded the vocabulary.
  """
  whole = arrays[1].shape[1]
  if whole <= VOCABULARY_BLOCK:
    return run(whole, *arrays)
  return jax.lax.platform_dependent(
    *arrays,
    cpu=functools.partial(run, VOCABULARY_BLOCK),
    default=functools.partial(run, whole),
  )


def _over_blocks(step, carry, vocabulary, width):
  """Folds `step(start, size, carry)` over the columns."""
  count, rest = divmod(vocabulary, width)
  if count == 1:
    carry = step(0, width, carry)
  else:
    carry = jax.lax.fori_loop(
      0, count, lambda i, carry: step(i * width, width, carry), carry
    )
  return step(count * width, rest, carry) if rest else carry


def _columns(matrix, start, size):
  return jax.lax.dynamic_slice_in_dim(matrix, start, size, axis=1)


def _read(hidden, head, targets, temperature, width, *, keep):
  """What the logits of n tokens say, and with `keep` the logits [n, V].

  One pass: the largest logit so far (m), the sum of exp(z - m), and that of
  exp(z - m) (z - m) are scaled anew whenever m grows.
  """
  n, vocabulary = len(targets), head.shape[1]
  dtype = _wide(hidden, head)

  def step(start, size, carry):
    logits, m, total, moment, chosen = carry
    z = chunk_logits(hidden, _columns(head, start, size), temperature)
    if keep:
      logits = jax.lax.dynamic_update_slice(logits, z, (0, start))
    largest = jnp.maximum(m, z.max(axis=-1))
    shifted = z - largest[:, None]
    weights = jnp.exp(shifted)
    scale, fall = jnp.exp(m - largest), m - largest
    moment = scale * (moment + total * fall)
    total = scale * total + weights.sum(axis=-1)
    moment += (weights * shifted).sum(axis=-1)
    local = targets - start
    here = (local >= 0) & (local < size)
    found = jnp.take_along_axis(
      z, jnp.clip(local, 0, size - 1)[:, None], axis=-1
    )[:, 0]
    return logits, largest, total, moment, jnp.where(here, found, chosen)

  zeros = jnp.zeros(n, dtype)
  lowest = jnp.full(n, jnp.finfo(dtype).min)  # finite: 0 x it is 0
  logits = jnp.zeros((n, vocabulary), dtype) if keep else None
  logits, m, total, moment, chosen = _over_blocks(
    step, (logits, lowest, zeros, zeros, zeros), vocabulary, width
  )
  log_z = m + jnp.log(total)
  entropy = jnp.log(total) - moment / total
  return _Read(chosen - log_z, entropy, log_z), logits


def _pull_back(head_gradient, head, pull, temperature, width):
  """Cotangents of logp and of the entropy -> gradients.

  The matrix products run in the dtype of the forward pass and are accumulated
  in float32.

  Returns:
    (head_gradient [D, V] with that of these tokens, hidden's [n, D]).
  """
  hidden, targets, read, g, h, logits = pull
  product = functools.partial(
    jnp.dot, preferred_element_type=head_gradient.dtype
  )

  def step(start, size, carry):
    total, dhidden = carry
    columns = _columns(head, start, size)
    if logits is None:
      z = chunk_logits(hidden, columns, temperature)
    else:
      z = _columns(logits, start, size)
    logq = z - read.log_z[:, None]
    share = g[:, None] + h[:, None] * (logq + read.entropy[:, None])
    # 0 in all columns where the target is in another block.
    onehot = jax.nn.one_hot(targets - start, size, dtype=logq.dtype)
    slope = g[:, None] * onehot - share * jnp.exp(logq)
    slope = (slope / temperature).astype(jnp.result_type(hidden, head))
    part = _columns(total, start, size) + product(hidden.T, slope)
    total = jax.lax.dynamic_update_slice(total, part, (0, start))
    return total, dhidden + product(slope, columns.T)

  head_gradient, dhidden = _over_blocks(
    step,
    (head_gradient, jnp.zeros(hidden.shape, head_gradient.dtype)),
    head.shape[1],
    width,
  )
  return head_gradient, dhidden.astype(hidden.dtype)


def _wide(hidden, head):
  return jnp.promote_types(jnp.result_type(hidden, head), jnp.float32)
