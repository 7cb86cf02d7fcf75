"""Attention through the TPU kernel that comes with JAX, splash attention.

Both functions compute what those of the same names in `models.attention` do, on
a device's own prompts and heads. Each response goes through in one call, on the
keys of its prompt and then its own, with one causal mask: nothing is merged, so
no log-sum-exp needs a gradient, and blocks of keys after all queries of a block
are skipped. Padding is told by segment ids, which skip nothing.

A prompt is computed once per group, but the kernel takes its keys once per
member: one layer of copies exists at a time, or all with model.remat=none. The
kernel also writes its log-sum-exp 128 times. (One call for a whole group would
copy nothing, and spend half of the backward pass on steps of the grid that skip
other members' keys.)

Queries are scaled before the kernel, and rounded again where they are bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Float, Int

from gft_jax.types import Array

# Queries and keys of a block, at most; the kernel takes multiples of LANES.
BLOCK = 512
LANES = 128


def attend_prompt(
  query: Float[Array, 'B P H K'],
  key: Float[Array, 'B P N K'],
  value: Float[Array, 'B P N K'],
  segments: Int[Array, 'B P'],
  *,
  interpret: bool = False,
) -> Float[Array, 'B P H K']:
  """Causal attention within segments.

  Args:
    query: rotated.
    key: rotated.
    value: of the keys.
    segments: int32, which sequence each token is of.
    interpret: run the kernel without a TPU, slowly.
  """
  attend = functools.partial(_attend, interpret=interpret)
  return jax.vmap(attend)(query, key, value, segments, segments)


def attend_response(
  query: Float[Array, 'B G T H K'],
  own: tuple[Float[Array, 'B G T N K'], Float[Array, 'B G T N K']],
  prefix: tuple[Float[Array, 'B P N K'], Float[Array, 'B P N K']],
  length: Int[Array, ' B'],
  *,
  interpret: bool = False,
) -> Float[Array, 'B G T H K']:
  """Each response attends to the shared prompt and causally to itself.

  Args:
    query: rotated.
    own: keys, rotated, and values of the same tokens.
    prefix: keys, rotated, and values of the prompts.
    length: int32, real tokens of each prompt.
    interpret: run the kernel without a TPU, slowly.
  """
  prompt = prefix[0].shape[1]

  def one(query, own, prefix, length):
    tokens = len(query)
    real = jnp.arange(prompt + tokens)
    real = (real < length) | (real >= prompt)
    key, value = (jnp.concatenate(parts) for parts in zip(prefix, own))
    segments = jnp.ones(tokens, jnp.int32), real.astype(jnp.int32)
    return _attend(query, key, value, *segments, interpret=interpret)

  members = jax.vmap(one, in_axes=(0, 0, None, None))
  return jax.vmap(members)(query, own, prefix, length)


def _attend(
  query: Float[Array, 'S H K'],
  key: Float[Array, 'U N K'],
  value: Float[Array, 'U N K'],
  query_segments: Int[Array, ' S'],
  key_segments: Int[Array, ' U'],
  *,
  interpret: bool,
) -> Float[Array, 'S H K']:
  """Query i sees the keys up to i + U - S."""
  (queries, heads, head_size), keys = query.shape, len(key)
  block_q, block_kv = _block(queries), _block(keys)
  # What is added stands after all that a real query sees.
  query, query_segments = (
    _pad(x, -queries % block_q) for x in (query, query_segments)
  )
  key, value, key_segments = (
    _pad(x, -keys % block_kv) for x in (key, value, key_segments)
  )
  mask = splash.CausalMask((len(query), len(key)), offset=keys - queries)
  kernel = splash.make_splash_mha(
    splash.MultiHeadMask([mask] * heads),
    block_sizes=splash.BlockSizes(
      block_q=block_q,
      block_kv=block_kv,
      block_q_dkv=block_q,
      block_kv_dkv=block_kv,
      block_q_dq=block_q,
      block_kv_dq=block_kv,
    ),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name='attention',
    interpret=interpret,
  )
  scaled = query.astype(jnp.float32) * head_size**-0.5
  out = kernel(
    *(x.swapaxes(0, 1) for x in (scaled.astype(query.dtype), key, value)),
    segment_ids=splash.SegmentIds(query_segments, key_segments),
  )
  assert isinstance(out, jax.Array)  # A tuple where residuals are asked for.
  return out.swapaxes(0, 1)[:queries]


def _block(size: int) -> int:
  """Blocks of this size, as few as may be, cover `size` with little more."""
  count = -(-size // BLOCK)
  return -(-size // (count * LANES)) * LANES


def _pad(x: Array, count: int) -> jax.Array:
  return jnp.pad(x, ((0, count), *[(0, 0)] * (x.ndim - 1)), mode='edge')
