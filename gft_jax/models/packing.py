"""A batch without its padding.

Two layouts run a batch. With shared prompts each prompt is computed once, and
every answer takes T tokens. In rows, end to end, every answer brings its prompt
along, and nothing else: that takes fewer tokens where answers are short beside
T and prompts are not long, or where one answer a prompt leaves padding. `pack`
takes the layout with fewer tokens.

In both the head reads a list of the tokens that train, [B, A] for [B, G, T].
`gather_trained` brings there what is known of tokens, and `scatter_trained`
brings back what was found; where nothing is packed they change nothing.

Each device packs its own prompts, and each part of a batch (see
microbatches.split) is packed by itself: a cell, B' prompts.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gft_jax.batch import GroupBatch, Packing, Rows, host_mask
from gft_jax.parallel import sharding
from gft_jax.types import Array, Tree

# Rows and lists grow in so many steps up to what a batch has without packing:
# each size is another program to compile.
STEPS = 8

# Beyond all states: nothing is read there, and no gradient comes back.
NOWHERE = np.iinfo(np.int32).max

# Where each sequence (b, g) of a cell begins in its flattened rows.
Starts = dict[tuple[int, int], int]


def pack(
  batch: GroupBatch,
  *,
  shards: int = 1,
  parts: int = 1,
  rows: bool = True,
  agree: Callable[..., tuple[int, ...]] = lambda *sizes: sizes,
) -> GroupBatch:
  """The batch as it runs with fewest tokens.

  A row holds P + T tokens, the longest sequences first wherever they fit. Answers
  of which nothing trains are left out.

  Args:
    batch: of this process, on the host.
    shards: devices of this process that hold different prompts; those of each
      are side by side.
    parts: row b is in part b % parts.
    rows: whether the model can run rows.
    agree: the largest of some numbers over all processes.

  Raises:
    ValueError: shards * parts does not divide B.
  """
  mask = host_mask(batch.responses) & batch.member_mask[..., None]
  count, group, size = mask.shape
  if count % (shards * parts):
    raise ValueError(
      f'{count} prompts do not fill {parts} parts of each of {shards} devices'
    )
  prompt = batch.prompts.tokens.shape[1]
  width, own = prompt + size, count // shards
  cells = [
    shard * own + np.arange(part, own, parts)
    for shard in range(shards)
    for part in range(parts)
  ]
  prompts, sequences = len(cells[0]), len(cells[0]) * group
  filled = [_fill(batch, mask, cell, width) for cell in cells]

  # Of the fullest cell.
  filled_rows = max(count for count, _ in filled) / sequences
  trained = max(mask[cell].mean() for cell in cells)
  row_steps, list_steps = agree(
    *(max(1, math.ceil(STEPS * part)) for part in (filled_rows, trained))
  )
  height = share(row_steps, sequences)
  shared = prompts * prompt + sequences * size
  in_rows = rows and height * width < shared
  if not in_rows and list_steps == STEPS:
    return batch
  if in_rows:  # A list that follows the rows makes fewer pairs of sizes.
    list_steps = max(row_steps, list_steps)
  list_size = share(list_steps, group * size)
  packings = [
    Packing(
      _lay(batch, starts, (height, width)) if in_rows else None,
      *_list(batch, mask, cell, list_size, starts if in_rows else None),
    )
    for cell, (_, starts) in zip(cells, filled)
  ]

  def together(*leaves):
    """Row r of a part stands where microbatches.split finds it."""
    x = np.stack(leaves).reshape(shards, parts, *leaves[0].shape)
    return x.swapaxes(1, 2).reshape(-1, *leaves[0].shape[1:])

  return batch.replace(packing=jax.tree.map(together, *packings))


def share(steps: int, count: int) -> int:
  """How many of `count` there is room for after so many steps."""
  return math.ceil(steps * count / STEPS)


def _fill(
  batch: GroupBatch, mask: np.ndarray, cell: np.ndarray, width: int
) -> tuple[int, Starts]:
  """How many rows the sequences of a cell take, and where each begins."""
  length = batch.prompts.length[:, None] + batch.responses.length
  sequences = [
    (b, g)
    for b in cell.tolist()
    for g in np.flatnonzero(mask[b].any(-1)).tolist()
  ]
  free, starts = np.zeros(0, int), {}
  for at in sorted(sequences, key=lambda at: -length[at]):
    fitting = np.flatnonzero(free >= length[at])
    if not len(fitting):
      fitting, free = [len(free)], np.append(free, width)
    row = fitting[0]
    starts[at] = int(row * width + width - free[row])
    free[row] -= length[at]
  return len(free), starts


def _lay(batch: GroupBatch, starts: Starts, shape: tuple[int, int]) -> Rows:
  """The rows of a cell."""
  tokens, positions, segments = np.zeros((3, math.prod(shape)), np.int32)
  for i, ((b, g), start) in enumerate(sorted(starts.items())):
    prompt = int(batch.prompts.length[b])
    answer = int(batch.responses.length[b, g])
    here = slice(start, start + prompt + answer)
    tokens[here] = np.concatenate(
      [batch.prompts.tokens[b, :prompt], batch.responses.tokens[b, g, :answer]]
    )
    positions[here] = np.arange(prompt + answer)
    segments[here] = i + 1
  return Rows(*(x.reshape(shape) for x in (tokens, positions, segments)))


def _list(
  batch: GroupBatch,
  mask: np.ndarray,
  cell: np.ndarray,
  size: int,
  starts: Starts | None,
) -> tuple[np.ndarray, np.ndarray]:
  """`source` and `place` of a cell, [B', size] each; see batch.Packing."""
  own = mask[cell]
  found = np.flatnonzero(own)
  source = np.full(len(cell) * size, own.size, np.int32)
  source[: len(found)] = found
  place = np.full_like(source, NOWHERE)
  if starts is None:
    place[: len(found)] = found
  else:
    b, g, t = np.nonzero(own)
    members = zip(cell[b].tolist(), g.tolist())
    begin = np.array([starts[member] for member in members], int)
    # The last token of the prompt predicts response token 0.
    place[: len(found)] = begin + batch.prompts.length[cell[b]] - 1 + t
  return source.reshape(len(cell), size), place.reshape(len(cell), size)


def trained_states(
  batch: GroupBatch, hidden: Float[Array, '*all D']
) -> Float[Array, 'B *listed D']:
  """What predicts the listed tokens, [B, A, D], from all that was run.

  Args:
    batch: packed, or not: then nothing changes.
    hidden: [R, C, D] or [B, G, T, D].
  """
  if batch.packing is None:
    return hidden

  def take(hidden, place):
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat.at[place].get(mode='fill', fill_value=0)

  return sharding.over_prompts(take, whole=())(hidden, batch.packing.place)


def gather_trained(batch: GroupBatch, tree: Tree) -> Tree:
  """Arrays [B, G, T] as the states of the batch stand; 0 beyond their number."""
  if batch.packing is None:
    return tree

  def take(source, tree):
    def one(x):
      return jnp.take(x.ravel(), source, mode='fill', fill_value=0)

    return jax.tree.map(one, tree)

  return sharding.over_prompts(take, whole=())(batch.packing.source, tree)


def scatter_trained(batch: GroupBatch, tree: Tree) -> Tree:
  """The inverse of `gather_trained`: arrays [B, G, T], 0 where no token trains."""
  if batch.packing is None:
    return tree

  def put(source, tokens, tree):
    def one(x):
      flat = jnp.zeros(tokens.size, x.dtype)
      flat = flat.at[source.ravel()].set(x.ravel(), mode='drop')
      return flat.reshape(tokens.shape)

    return jax.tree.map(one, tree)

  return sharding.over_prompts(put, whole=())(
    batch.packing.source, batch.responses.tokens, tree
  )
