"""The nouns that walk through the house, and the axis alphabet.

| axis | counts |
|---|---|
| B | prompts |
| G | members of a group |
| P | prompt tokens (allocated; the length says how many are real) |
| T | response tokens (likewise) |
| V | vocabulary |
| D | width of the residual stream |
| H, N | query heads, key and value heads |
| K | size of a head |
| L | layers |

A mask is a length until the last moment: `positions(T) < length`. Padding is
on the right, and no mask is ever inferred from a token id.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# Where an answer comes from; `GroupBatch.origin` holds these.
EXPERT, TEACHER, SELF = 0, 1, 2
ORIGINS = {'expert': EXPERT, 'teacher': TEACHER, 'self': SELF}


@flax.struct.dataclass
class Prompts:
  """What the policy is asked.

  Attributes:
    tokens: [B, P] int32, padded on the right.
    length: [B] int32, at least 1.
    index: [B] int32, the dataset's record id; the sampler's random bits
      depend on it, not on the row.
    limit: [B] int32, most tokens of a sampled answer, at least 1, where that is
      less than the sampler's max_tokens; None: no limit of their own.
  """

  tokens: jax.Array
  length: jax.Array
  index: jax.Array
  limit: jax.Array | None = None


@flax.struct.dataclass
class Responses:
  """Answers of one group per prompt, given or sampled.

  Attributes:
    tokens: [B, G, T] int32, padded on the right with 0.
    length: [B, G] int32, the stop token included; 0 for an empty slot.
    behavior_logp: [B, G, T] float32, log-probability of each token under the
      policy that sampled it; 0 beyond the length and for given answers.
    trained: [B, G, T] bool, the tokens that train, where a given answer also
      holds turns of a user; None: every real token trains.
  """

  tokens: jax.Array
  length: jax.Array
  behavior_logp: jax.Array
  trained: jax.Array | None = None

  @property
  def mask(self) -> jax.Array:
    """[B, G, T] bool: the tokens that are real."""
    return length_mask(self.length, self.tokens.shape[-1])


@flax.struct.dataclass
class Rows:
  """The sequences of a batch, prompt and answer each, end to end.

  Attributes:
    tokens: [R, C] int32.
    positions: [R, C] int32, of a token in its sequence.
    segments: [R, C] int32, the sequence of a token, from 1; 0 is padding.
  """

  tokens: jax.Array
  positions: jax.Array
  segments: jax.Array


@flax.struct.dataclass
class Packing:
  """What of a batch the model runs, and what of that the head reads.

  What trains is listed: A tokens for each prompt, whosever they are.

  Attributes:
    rows: what the model runs; None: prompts that answers share, and T tokens of
      each answer.
    source: [B, A] int32, which token of the flattened [B, G, T] is listed;
      B G T for none.
    place: [B, A] int32, where its prediction stands in the flattened states,
      which are [R, C] or [B, G, T]; beyond them for none.
  """

  rows: Rows | None
  source: jax.Array
  place: jax.Array


@flax.struct.dataclass
class GroupBatch:
  """Scored groups: what a training step sees.

  No advantages (the step computes them from rewards, so they cannot be
  stale) and no probabilities (they are exp(logp)).

  Attributes:
    prompts: B prompts.
    responses: G answers each.
    rewards: [B, G] float32.
    origin: [B, G] int32, one of EXPERT, TEACHER, SELF.
    member_mask: [B, G] bool, the slot holds an answer.
    packing: how it runs without its padding, or None; see models.packing.
  """

  prompts: Prompts
  responses: Responses
  rewards: jax.Array
  origin: jax.Array
  member_mask: jax.Array
  packing: Packing | None = None

  @property
  def token_mask(self) -> jax.Array:
    """[B, G, T] bool: the tokens that train."""
    mask = self.responses.mask & self.member_mask[..., None]
    trained = self.responses.trained
    return mask if trained is None else mask & trained

  @property
  def end_mask(self) -> jax.Array:
    """[B, G, T] bool: tokens that end what they train to say.

    That is the last token of each answer that came to its end, and of each
    turn of the assistant in it. A sampled answer as long as the limit T may
    have been cut there, and has no end.
    """
    mask, length = self.token_mask, self.responses.length
    ended = (self.origin != SELF) | (length < mask.shape[-1])
    following = jnp.pad(mask[..., 1:], ((0, 0), (0, 0), (0, 1)))
    return mask & ended[..., None] & ~following


def length_mask(length: jax.Array, size: int) -> jax.Array:
  """[..., size] bool from lengths [...]."""
  positions = jnp.expand_dims(jnp.arange(size), tuple(range(length.ndim)))
  return positions < length[..., None]


def host_mask(responses: Responses) -> np.ndarray:
  """[B, G, T] bool: the tokens that train, of arrays on the host.

  In numpy: nothing is compiled.
  """
  size = responses.tokens.shape[-1]
  mask = np.arange(size) < np.asarray(responses.length)[..., None]
  return mask if responses.trained is None else mask & responses.trained
