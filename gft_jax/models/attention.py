"""Attention in which the responses of a group share one prompt.

Keys fall into parts: the prompt, computed once per group, and a response's
own tokens. Each part is attended alone, and the parts are joined exactly by
their log-sum-exp, so neither the prompt nor a key head is repeated. (A TPU's
kernel does without parts, see `models.splash`.) Sequences in rows, which bring
their prompts along, are one part with segments: `attend_prompt`.

`jax.nn.dot_product_attention` does not serve the parts: its residual is stopped
in the gradient (a merged loss would train on a wrong gradient without a word)
and rounded to the dtype of the keys. `attend` returns a float32 log-sum-exp that
differentiates.

Long sequences go through in blocks of queries, whose scores the backward pass
makes again: no array of all queries by all keys exists. On a TPU they go through
that kernel; none that JAX has for GPUs takes the mask of a response without such
an array.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int

from gft_jax.models import splash
from gft_jax.parallel import sharding
from gft_jax.types import Array

# Tokens of the cache that are read together. Smaller blocks waste fewer keys
# after the current token, larger ones take fewer turns. A cache that is no larger
# is read whole, without a loop.
BLOCK = 128

# Most queries of each sequence whose scores exist at one time, and most bytes of
# the scores of one group, where that leaves FEWEST queries: they then stay in a
# TPU core's own memory, which halves what a training step reads and writes
# (experiments/pods).
QUERY_BLOCK = 128
SCORES = 2**24
FEWEST = 16

# Blocks of queries go in at most so many parts, each with the keys that its last
# query sees. The causal mask hides half of the scores; with four parts an eighth
# of them is still computed for nothing.
PARTS = 4


class Part(NamedTuple):
  """Attention over a part of the keys.

  Attributes:
    out: float32, softmax over this part times its values.
    lse: float32, log of the sum of exp(logits) over this part.
  """

  out: Float[Array, '*batch S H K']
  lse: Float[Array, '*batch S H']


def rotation(
  positions: Int[Array, '*batch'],
  *,
  head_size: int,
  theta: float,
  scaling: tuple[float, float, float, int] | None = None,
) -> tuple[
  Float[Array, '*batch {head_size}//2'], Float[Array, '*batch {head_size}//2']
]:
  """Cosine and sine of the rotary angles, float32.

  Angle i of position p is p * theta^(-2i/K). Llama-3 scaling (factor, low,
  high, original context) divides frequencies with fewer than `low` turns in
  the original context by the factor, leaves those with more than `high`, and
  interpolates between (transformers `modeling_rope_utils`, rope type llama3).

  Args:
    positions: int32.
    head_size: K, even.
    theta: base of the frequencies.
    scaling: Llama-3 scaling, or None.
  """
  exponents = np.arange(0, head_size, 2, dtype=np.float32) / head_size
  frequencies = 1.0 / theta**exponents
  if scaling is not None:
    factor, low, high, original_context = scaling
    turns = original_context * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    frequencies = frequencies * (kept + (1 - kept) / factor)

  angles = jnp.multiply.outer(
    positions.astype(jnp.float32), frequencies.astype(np.float32)
  )
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
  x: Float[Array, '*batch H K'],
  rotation: tuple[Float[Array, '*#batch K//2'], Float[Array, '*#batch K//2']],
) -> Float[Array, '*batch H K']:
  """Turns x by `rotation`, in float32.

  Element i pairs with i + K/2, as in Hugging Face checkpoints; the original
  Llama weights pair 2i with 2i + 1.
  """
  cos, sin = (r[..., None, :] for r in rotation)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x.dtype)


def attend(
  query: Float[Array, '*batch S H K'],
  key: Float[Array, '*batch U N K'],
  value: Float[Array, '*batch U N K'],
  mask: Bool[Array, '*#batch #S U'],
) -> Part:
  """Softmax attention over one part of the keys.

  Args:
    query: H heads.
    key: N heads; head h of the query reads key head h // (H / N).
    value: of the keys.
    mask: broadcastable and of that rank; every query must see at least one
      key.
  """
  *lead, size, heads, head_size = query.shape
  kv_heads = key.shape[-2]
  grouped = query.reshape(*lead, size, kv_heads, heads // kv_heads, head_size)

  logits = jnp.einsum(
    '...snhk,...unk->...nhsu',
    grouped,
    key,
    preferred_element_type=jnp.float32,
  )
  logits = jnp.where(
    mask[..., None, None, :, :], logits * head_size**-0.5, -jnp.inf
  )
  lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  out = jnp.einsum(
    '...nhsu,...unk->...nhsk',
    jnp.exp(logits - lse).astype(value.dtype),
    value,
    preferred_element_type=jnp.float32,
  )
  return Part(
    out=jnp.moveaxis(out, -2, -4).reshape(*lead, size, heads, head_size),
    lse=jnp.moveaxis(lse[..., 0], -1, -3).reshape(*lead, size, heads),
  )


def merge(a: Part, b: Part) -> Part:
  """Attention over the union of two disjoint parts of the keys."""
  lse = jnp.logaddexp(a.lse, b.lse)
  out = (
    a.out * jnp.exp(a.lse - lse)[..., None]
    + b.out * jnp.exp(b.lse - lse)[..., None]
  )
  return Part(out, lse)


def attend_prompt(
  query: Float[Array, 'B P H K'],
  key: Float[Array, 'B P N K'],
  value: Float[Array, 'B P N K'],
  segments: Int[Array, 'B P'],
) -> Float[Array, 'B P H K']:
  """Causal attention within segments.

  Padding is on the right, so the causal mask alone keeps it from every real
  token; what padded positions give is finite and never read.

  Args:
    query: rotated.
    key: rotated.
    value: of the keys.
    segments: int32, which sequence each token is of.
  """
  if _splash_serves(query, key):
    return sharding.over_heads(
      splash.attend_prompt, query, key, value, segments
    )

  def attend_block(seen, start, query, own_segments):
    causal = _causal(start, query.shape[1], seen)
    same = own_segments[:, :, None] == segments[:, None, :seen]
    part = attend(query, key[:, :seen], value[:, :seen], causal & same)
    return part.out.astype(query.dtype)

  return _in_query_blocks(
    attend_block, query, segments, axis=1, block=QUERY_BLOCK
  )


def attend_response(
  query: Float[Array, 'B G T H K'],
  own: tuple[Float[Array, 'B G T N K'], Float[Array, 'B G T N K']],
  prefix: tuple[Float[Array, 'B P N K'], Float[Array, 'B P N K']],
  length: Int[Array, ' B'],
) -> Float[Array, 'B G T H K']:
  """Each response attends to the shared prompt and causally to itself.

  Args:
    query: rotated.
    own: keys, rotated, and values of the same tokens.
    prefix: keys, rotated, and values of the prompts.
    length: int32, real tokens of each prompt.
  """
  if _splash_serves(query, own[0]):
    return sharding.over_heads(
      splash.attend_response, query, own, prefix, length
    )

  def attend_block(seen, start, query):
    causal = _causal(start, query.shape[2], seen)
    key, value = (x[:, :, :seen] for x in own)
    part = merge(
      _attend_prefix(query, prefix, length),
      attend(query, key, value, causal[None]),
    )
    return part.out.astype(query.dtype)

  _, group, tokens, heads, _ = query.shape
  keys = max(tokens, prefix[0].shape[1])
  fitting = SCORES // (4 * group * heads * keys) // FEWEST * FEWEST
  block = min(QUERY_BLOCK, max(FEWEST, fitting))
  return _in_query_blocks(attend_block, query, axis=2, block=block)


def _splash_serves(query: Array, key: Array) -> bool:
  """Long sequences on a TPU, each of whose devices has whole key heads."""
  return (
    sharding.platform() == 'tpu'
    and query.shape[-3] > QUERY_BLOCK
    and key.shape[-2] % sharding.tensor_shards() == 0
  )


def _causal(
  start: Int[Array, ''] | int, queries: int, keys: int
) -> Bool[Array, '1 {queries} {keys}']:
  """What each query sees; query i has position start + i."""
  query, key = jnp.arange(queries)[:, None], jnp.arange(keys)[None]
  return (start + query >= key)[None]


def _in_query_blocks(
  attend_block: Callable[..., Array],
  *arrays: Array,
  axis: int,
  block: int,
) -> Array:
  """`attend_block(seen, start, *arrays)` on at most `block` along `axis`.

  No query of a block that starts at `start` sees a key at `seen`, a Python int,
  or after it.
  """
  tokens = arrays[0].shape[axis]
  if tokens <= block:
    return checkpoint_name(attend_block(tokens, 0, *arrays), 'attention')
  count = -(-tokens // block)
  size = -(-tokens // count)

  def cut(x):
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, count * size - tokens)
    # What is added repeats the last query: it sees a key, and is dropped.
    x = jnp.pad(x, padding, mode='edge')
    shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  blocks = (size * jnp.arange(count), *map(cut, arrays))

  def attend_part(first, end):
    """Blocks `first` to `end`, on the keys that their last query sees."""
    run = functools.partial(attend_block, min(end * size, tokens))
    # In a loop, so that the two passes cannot be merged.
    run = jax.checkpoint(run, prevent_cse=False)
    part = tuple(x[first:end] for x in blocks)
    return jax.lax.scan(lambda _, block: (None, run(*block)), None, part)[1]

  # Of two blocks at least: a loop of one turn would be no loop.
  parts = min(PARTS, count // 2)
  ends = [count * i // parts for i in range(parts + 1)]
  out = [attend_part(*pair) for pair in itertools.pairwise(ends)]
  out = jnp.concatenate(out)
  out = jnp.moveaxis(out, 0, axis)
  shape = (*out.shape[:axis], -1, *out.shape[axis + 2 :])
  out = jax.lax.slice_in_dim(out.reshape(shape), 0, tokens, axis=axis)
  return checkpoint_name(out, 'attention')


def attend_step(
  query: Float[Array, 'R H K'],
  own: tuple[Float[Array, 'R N K T'], Float[Array, 'R N T K']],
  prompt: tuple[Float[Array, 'B N K P'], Float[Array, 'B N P K']],
  length: Int[Array, ' B'],
  slots: Int[Array, ' R'],
  step: Int[Array, ''] | int,
  *,
  group_size: int,
) -> Float[Array, 'R H K']:
  """One decoded token of each row attends to its prompt and its response.

  A cache of more than BLOCK tokens is read in blocks up to the current token: the
  cost follows the step, not the allocation. No gradient then.

  Args:
    query: rotated, of this token.
    own: keys, rotated, and values, this token's in place.
    prompt: keys, rotated, and values of the prompts.
    length: int32, real tokens of each prompt.
    slots: int32, the response b G + g that each row is.
    step: int32, index of this token in the response, under T.
    group_size: G.
  """
  rows, kv_heads, tokens, head_size = own[1].shape
  block = min(BLOCK, tokens)
  grouped = query.reshape(rows, kv_heads, -1, head_size)

  def attend_block(i: Int[Array, ''] | int, part: Part) -> Part:
    # The last block of a T that is no multiple would end beyond the cache: it
    # starts earlier and masks what the block before it has attended.
    start = jnp.minimum(i * block, tokens - block)
    key, value = (
      jax.lax.dynamic_slice_in_dim(x, start, block, axis)
      for x, axis in zip(own, (3, 2))
    )
    position = start + jnp.arange(block)
    seen = (position >= i * block) & (position <= step)
    return merge(part, _attend_rows(grouped, key, value, seen[None]))

  part = _attend_group(grouped, prompt, length, slots, group_size)
  if tokens == block:
    part = attend_block(0, part)
  else:
    part = jax.lax.fori_loop(0, step // block + 1, attend_block, part)
  return part.out.reshape(query.shape).astype(query.dtype)


def _attend_rows(
  query: Float[Array, 'R N S K'],
  key: Float[Array, 'R N K U'],
  value: Float[Array, 'R N U K'],
  seen: Bool[Array, '#R U'],
) -> Part:
  """S queries share a key head; the part is [R, N, S, K] and [R, N, S]."""
  logits = jnp.einsum(
    'rnsk,rnku->rnsu', query, key, preferred_element_type=jnp.float32
  )
  logits = jnp.where(
    seen[:, None, None], logits * query.shape[-1] ** -0.5, -jnp.inf
  )
  # Divided by their sum after the product, the exponentials are made once.
  top = jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(logits - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  out = jnp.einsum(
    'rnsu,rnuk->rnsk',
    weights.astype(value.dtype),
    value,
    preferred_element_type=jnp.float32,
  )
  return Part(out / total, (top + jnp.log(total))[..., 0])


def _attend_group(
  query: Float[Array, 'R N S K'],
  prompt: tuple[Float[Array, 'B N K P'], Float[Array, 'B N P K']],
  length: Int[Array, ' B'],
  slots: Int[Array, ' R'],
  group_size: int,
) -> Part:
  """Queries of R rows against the prompt of their group.

  Rows go to their places in their groups and back, so that each prompt is read
  once per group however many of its members are left.
  """
  batch, kv_heads, size, head_size = prompt[1].shape
  count = batch * group_size
  everybody = len(query) == count
  if not everybody:
    places = jnp.zeros((count, *query.shape[1:]), query.dtype)
    query = places.at[slots].set(query)
  # The members of a group are further queries of each key head.
  query = query.reshape(batch, group_size, kv_heads, -1, head_size)
  together = query.swapaxes(1, 2).reshape(batch, kv_heads, -1, head_size)
  part = _attend_rows(
    together, *prompt, jnp.arange(size)[None] < length[:, None]
  )

  def of_rows(x):
    x = x.reshape(batch, kv_heads, group_size, -1, *x.shape[3:]).swapaxes(1, 2)
    x = x.reshape(count, kv_heads, -1, *x.shape[4:])
    return x if everybody else x[slots]

  return Part(*map(of_rows, part))


def _attend_prefix(
  query: Float[Array, 'B G T H K'],
  prefix: tuple[Float[Array, 'B P N K'], Float[Array, 'B P N K']],
  length: Int[Array, ' B'],
) -> Part:
  """Queries of a group as one axis against one prompt."""
  batch, group, tokens, heads, head_size = query.shape
  positions = jnp.arange(prefix[0].shape[1])[None, None]
  mask = positions < length[:, None, None]
  part = attend(
    query.reshape(batch, group * tokens, heads, head_size), *prefix, mask
  )
  return Part(part.out.reshape(query.shape), part.lse.reshape(query.shape[:-1]))
