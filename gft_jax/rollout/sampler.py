"""Group rollouts: prefill each prompt once, expand to G, decode in lax.

The sampler knows a model only by its entrances, called through
`model.apply({'params': params}, ..., method=...)`:

  prefill(tokens [B,P], length [B]) -> prefix with `.hidden [B,D]`
  empty_cache(prefix, group_size, max_tokens) -> cache of B G rows
  decode(prefix, cache, tokens [R], slots [R], step) -> (hidden [R,D], cache)
  keep_rows(cache, rows [R']) -> cache of those rows
  head() -> [D,V]

so a table of known probabilities is a model too (see the tests).

A row is one response that is being written; its slot b * G + g says which.
Finished responses leave: whenever half of the rows or fewer are alive, those
are gathered and the loop goes on with half as many rows, so the cost of a
step follows the live ones. The prompt's part of attention stays grouped, for
rows find their group by their slot.

Randomness: token t of member g of the prompt with record id i is drawn with
the one uniform number of `fold_in(fold_in(fold_in(key, i), g), t)`. The bits
depend on nothing else: not on the row, the batch, or the mesh.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from gft_jax.batch import Prompts, Responses
from gft_jax.types import Array, Model, Params

# Rows below which no more are dropped: a step then costs what reading the
# parameters costs, and each further size is another loop to compile.
FEWEST_ROWS = 8

# Tokens of the vocabulary that a draw looks at together.
BLOCK = 256


class Rollout(NamedTuple):
  """State of the decode loop; R rows.

  Attributes:
    step: int32, tokens decided so far.
    slots: int32, which response each row is.
    keys: JAX keys.
    tokens: int32.
    logp: float32.
    length: int32.
    alive: not ended yet.
    hidden: the state that predicts token `step`.
    cache: what decoding needs, owned by the model.
  """

  step: Int[jax.Array, '']
  slots: Int[jax.Array, ' R']
  keys: Key[jax.Array, ' R']
  tokens: Int[jax.Array, 'R T']
  logp: Float[jax.Array, 'R T']
  length: Int[jax.Array, ' R']
  alive: Bool[jax.Array, ' R']
  hidden: Float[jax.Array, 'R D']
  cache: object


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is drawn, and what ends a response. Static under jit.

  Attributes:
    temperature: 0 is greedy (the first of equal logits).
    top_k: keep the k largest logits (and their ties); 0 keeps all.
    top_p: then keep the smallest set of the likeliest tokens whose
      renormalised mass reaches top_p; 1 keeps all.
    min_p: then drop tokens below min_p times the likeliest; 0 keeps all.
    stop_ids: tokens that end a response. The stop token is part of it.
    stop_sequences: sequences of tokens that end a response, likewise.

  Raises:
    ValueError: a negative temperature, or an empty stop sequence.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  stop_ids: tuple[int, ...] = ()
  stop_sequences: tuple[tuple[int, ...], ...] = ()

  def __post_init__(self):
    if self.temperature < 0:
      raise ValueError(f'temperature={self.temperature} must not be negative')
    if () in self.stop_sequences:
      raise ValueError('stop_sequences: one of them has no token')

  @property
  def filters(self) -> bool:
    """Whether some tokens are left out of a draw."""
    return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def sample_groups(
  model: Model,
  params: Params,
  prompts: Prompts,
  key: Key[jax.Array, ''],
  *,
  group_size: int,
  max_tokens: int,
  sampling: Sampling = Sampling(),
) -> Responses:
  """Samples G responses per prompt.

  Pure and unjitted; everything after `*` is static.

  Args:
    model: anything with the entrances of the module docstring.
    params: its parameters, a plain pytree.
    prompts: B prompts, perhaps with limits of their own.
    key: a JAX key of this rollout, `fold_in(root, step)`.
    group_size: G.
    max_tokens: T; a response that nothing ends has this length.
    sampling: how each token is drawn.

  Returns:
    Responses with tokens [B, G, T] (0 beyond the length), length [B, G], and
    behavior_logp [B, G, T]: log-softmax of logits / temperature *before* any
    filter, so that a ratio objective, which evaluates the policy at that
    temperature, starts at ratio 1. At temperature 0 the logits are untempered.

  Raises:
    ValueError: group_size or max_tokens below 1.
  """
  if group_size < 1 or max_tokens < 1:
    raise ValueError(
      f'group_size={group_size} and max_tokens={max_tokens} must be >= 1'
    )
  apply = functools.partial(model.apply, {'params': params})
  with jax.named_scope('prefill'):
    prefix = apply(prompts.tokens, prompts.length, method='prefill')
    head = apply(method='head')
    cache = apply(prefix, group_size, max_tokens, method='empty_cache')

  def decide(rollout: Rollout) -> Rollout:
    logits = jnp.matmul(
      rollout.hidden, head, preferred_element_type=jnp.float32
    )
    limit = None
    if prompts.limit is not None:
      limit = jnp.take(prompts.limit, rollout.slots // group_size)
    return next_token(rollout, logits, limit, sampling)

  def advance(rollout: Rollout) -> Rollout:
    last = rollout.step - 1
    tokens = jax.lax.dynamic_index_in_dim(
      rollout.tokens, last, axis=-1, keepdims=False
    )
    hidden, cache = apply(
      prefix, rollout.cache, tokens, rollout.slots, last, method='decode'
    )
    return decide(rollout._replace(hidden=hidden, cache=cache))

  with jax.named_scope('decode'):
    batch, rows = len(prompts.length), len(prompts.length) * group_size
    first = decide(
      Rollout(
        step=jnp.int32(0),
        slots=jnp.arange(rows, dtype=jnp.int32),
        keys=_member_keys(key, prompts.index, group_size),
        tokens=jnp.zeros((rows, max_tokens), jnp.int32),
        logp=jnp.zeros((rows, max_tokens), jnp.float32),
        length=jnp.zeros(rows, jnp.int32),
        alive=jnp.ones(rows, bool),
        hidden=jnp.repeat(prefix.hidden, group_size, axis=0),
        cache=cache,
      )
    )
    keep_rows = functools.partial(apply, method='keep_rows')
    written = _write_all(first, advance, keep_rows)
  shape = (batch, group_size)
  return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), written)


@jax.named_scope('next_token')
def next_token(
  rollout: Rollout,
  logits: Float[Array, 'R V'],
  limit: Int[Array, ' R'] | None,
  sampling: Sampling,
) -> Rollout:
  """Decides one token of every row that is alive.

  Args:
    rollout: R rows.
    logits: float32.
    limit: int32, most tokens of each row, or None.
    sampling: how the token is drawn, and whether it ends the row.
  """
  temperature = sampling.temperature
  tempered = logits / temperature if temperature > 0 else logits
  top = jnp.max(tempered, axis=-1, keepdims=True)
  weights = jnp.exp(tempered - top)
  log_total = jnp.log(jnp.sum(weights, axis=-1, keepdims=True))
  if temperature > 0:
    if sampling.filters:
      kept = keep(
        tempered,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
      )
      weights = jnp.where(kept, weights, 0.0)
    token = draw(weights, _uniform(rollout.keys, rollout.step))
  else:
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  at_token = jnp.take_along_axis(tempered, token[:, None], axis=-1)
  chosen = at_token - top - log_total

  alive, at = rollout.alive, rollout.step
  write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
  tokens = write(rollout.tokens, jnp.where(alive, token, 0)[:, None], at)
  length = rollout.length + alive
  stopped = jnp.isin(token, jnp.array(sampling.stop_ids, jnp.int32))
  for sequence in sampling.stop_sequences:
    stopped |= _ends_with(tokens, rollout.step, sequence)
  if limit is not None:
    stopped |= length >= limit
  return rollout._replace(
    step=rollout.step + 1,
    tokens=tokens,
    logp=write(rollout.logp, jnp.where(alive[:, None], chosen, 0.0), at),
    length=length,
    alive=alive & ~stopped,
  )


def _write_all(
  rollout: Rollout,
  advance: Callable[[Rollout], Rollout],
  keep_rows: Callable[[object, jax.Array], object],
) -> Responses:
  """Advances until every row has ended, with fewer and fewer rows.

  Args:
    rollout: all rows, with one token each.
    advance: decides one more token.
    keep_rows: (cache, rows) -> cache of those rows.

  Returns:
    Responses of one axis: tokens [R, T], and so on.
  """
  rows, max_tokens = rollout.tokens.shape
  tokens = jnp.zeros_like(rollout.tokens)
  length = jnp.zeros_like(rollout.length)
  logp = jnp.zeros_like(rollout.logp)
  for size in sizes(rows):
    if size < rows:
      rollout = _shrink(rollout, size, keep_rows)
    smaller = size // 2 if size // 2 in sizes(rows) else 0

    def crowded(rollout: Rollout, smaller=smaller) -> Bool[jax.Array, '']:
      alive = jnp.sum(rollout.alive, dtype=jnp.int32)
      return (rollout.step < max_tokens) & (alive > smaller)

    rollout = jax.lax.while_loop(crowded, advance, rollout)
    # Rows that leave now are done; the others are written again later.
    tokens = tokens.at[rollout.slots].set(rollout.tokens)
    length = length.at[rollout.slots].set(rollout.length)
    logp = logp.at[rollout.slots].set(rollout.logp)
  return Responses(tokens, length, logp)


def _shrink(
  rollout: Rollout,
  size: int,
  keep_rows: Callable[[object, jax.Array], object],
) -> Rollout:
  """The rows that are alive, and finished ones up to `size`."""
  kept = jnp.argsort(~rollout.alive, stable=True)[:size]
  return Rollout(
    step=rollout.step,
    slots=rollout.slots[kept],
    keys=rollout.keys[kept],
    tokens=rollout.tokens[kept],
    logp=rollout.logp[kept],
    length=rollout.length[kept],
    alive=rollout.alive[kept],
    hidden=rollout.hidden[kept],
    cache=keep_rows(rollout.cache, kept),
  )


def sizes(rows: int) -> tuple[int, ...]:
  """How many rows the loop runs with, one program each: halves of `rows`."""
  ladder = [rows]
  while ladder[-1] >= 2 * FEWEST_ROWS:
    ladder.append(ladder[-1] // 2)
  return tuple(ladder)


def keep(
  logits: Float[Array, '*batch V'], *, top_k: int, top_p: float, min_p: float
) -> Bool[Array, '*batch V']:
  """The tokens that survive the filters, in the order top-k, top-p, min-p.

  One sort of the vocabulary at most, and none unless top_k or top_p asks.

  Args:
    logits: float32, up to a constant of each row.
    top_k: 0 keeps all.
    top_p: 1 keeps all.
    min_p: 0 keeps all.

  Returns:
    Which survive; the likeliest token always does.
  """
  vocabulary = logits.shape[-1]
  floor = jnp.full((*logits.shape[:-1], 1), -jnp.inf)
  if top_p < 1:
    count = top_k if 0 < top_k < vocabulary else vocabulary
    likeliest = jax.lax.top_k(logits, count)[0]
    mass = jnp.cumsum(jax.nn.softmax(likeliest), axis=-1)
    # A token stays while the mass before it has not reached top_p yet.
    needed = jnp.sum(mass < top_p, axis=-1, keepdims=True)
    needed = jnp.minimum(needed, count - 1)
    floor = jnp.take_along_axis(likeliest, needed, axis=-1)
  elif 0 < top_k < vocabulary:
    floor = jax.lax.top_k(logits, top_k)[0][..., -1:]
  if min_p > 0:
    least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p)
    floor = jnp.maximum(floor, least)
  return logits >= floor


def draw(
  weights: Float[Array, '*batch V'], uniform: Float[Array, '*batch']
) -> Int[Array, '*batch']:
  """Draws by the inverse of the cumulative distribution.

  One uniform number per row instead of V of Gumbel noise. It chooses a block of
  the vocabulary, and its remainder chooses a token of that block, so that
  cumulative sums are over few numbers.

  Args:
    weights: at least 0 and not all 0; they need not be normalised.
    uniform: in [0, 1).

  Returns:
    int32.
  """
  *lead, vocabulary = weights.shape
  size = min(BLOCK, vocabulary)
  weights = jnp.pad(weights, [(0, 0)] * len(lead) + [(0, -vocabulary % size)])
  weights = weights.reshape(*lead, -1, size)
  block, uniform = _inverse(jnp.sum(weights, axis=-1), uniform)
  at = block[..., None, None]
  inside = jnp.take_along_axis(weights, at, axis=-2)[..., 0, :]
  token, _ = _inverse(inside, uniform)
  return (block * size + token).astype(jnp.int32)


def _inverse(
  weights: Float[Array, '*batch U'], uniform: Float[Array, '*batch']
) -> tuple[Int[Array, '*batch'], Float[Array, '*batch']]:
  """Where the cumulative sum of `weights` passes the share `uniform` of it.

  A parallel cumulative sum in float32 is not quite monotone, so weights of 0
  are left out by name; among the others one always exceeds the threshold,
  since uniform * maximum stays below the maximum for uniform < 1.

  Args:
    weights: one of them at least above 0.
    uniform: in [0, 1).

  Returns:
    The index, and in [0, 1), how far into its weight the share reaches.
  """
  cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
  threshold = uniform[..., None] * jnp.max(cumulative, axis=-1, keepdims=True)
  index = jnp.argmax(cumulative > threshold, axis=-1)
  at = index[..., None]
  found, end = (
    jnp.take_along_axis(x, at, axis=-1) for x in (weights, cumulative)
  )
  rest = (threshold - (end - found)) / found
  below_one = jnp.finfo(rest.dtype).epsneg
  return index, jnp.clip(rest, 0, 1 - below_one)[..., 0]


def _ends_with(
  tokens: Int[Array, 'R T'], step: Int[Array, ''], sequence: tuple[int, ...]
) -> Bool[Array, ' R']:
  """Whether the tokens up to `step` end with the sequence."""
  rows, size = tokens.shape
  count = len(sequence)
  if count > size:
    return jnp.zeros(rows, bool)
  start = step - count + 1
  last = jax.lax.dynamic_slice_in_dim(
    tokens, jnp.maximum(start, 0), count, axis=1
  )
  same = last == jnp.array(sequence, jnp.int32)[None]
  return (start >= 0) & same.all(axis=-1)


def _member_keys(
  key: Key[jax.Array, ''], index: Int[Array, ' B'], group_size: int
) -> Key[jax.Array, ' B*{group_size}']:
  """One key for each response, of the record ids."""
  fold = jax.random.fold_in
  members = jnp.arange(group_size)

  def of_prompt(i):
    return jax.vmap(lambda g: fold(fold(key, i), g))(members)

  return jax.vmap(of_prompt)(index).reshape(-1)


def _uniform(
  keys: Key[jax.Array, ' R'], step: Int[Array, '']
) -> Float[Array, ' R']:
  """Uniform numbers in [0, 1) for one position."""

  def one(key):
    return jax.random.uniform(jax.random.fold_in(key, step), dtype=jnp.float32)

  return jax.vmap(one)(keys)
