"""The nouns of every room, and the axis alphabet.

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
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from gft_jax.types import Array

# Where an answer comes from; `GroupBatch.origin` holds these.
EXPERT, TEACHER, SELF = 0, 1, 2
ORIGINS = {'expert': EXPERT, 'teacher': TEACHER, 'self': SELF}


class Prompts(flax.struct.PyTreeNode):
  """What the policy is asked.

  Attributes:
    tokens: int32, padded on the right.
    length: int32, at least 1.
    index: int32, the dataset's record id; the sampler's random bits depend on
      it, not on the row.
    limit: int32, most tokens of a sampled answer, at least 1, where that is
      less than the sampler's max_tokens; None: no limit of their own.
  """

  tokens: Int[Array, 'B P']
  length: Int[Array, ' B']
  index: Int[Array, ' B']
  limit: Int[Array, ' B'] | None = None


class Responses(flax.struct.PyTreeNode):
  """Answers of one group per prompt, given or sampled.

  Attributes:
    tokens: int32, padded on the right with 0.
    length: int32, the stop token included; 0 for an empty slot.
    behavior_logp: float32, log-probability of each token under the policy that
      sampled it; 0 beyond the length and for given answers.
    trained: the tokens that train, where a given answer also holds turns of a
      user; None: every real token trains.
  """

  tokens: Int[Array, 'B G T']
  length: Int[Array, 'B G']
  behavior_logp: Float[Array, 'B G T']
  trained: Bool[Array, 'B G T'] | None = None

  @property
  def mask(self) -> Bool[Array, 'B G T']:
    """The tokens that are real."""
    return length_mask(self.length, self.tokens.shape[-1])


class Rows(flax.struct.PyTreeNode):
  """The sequences of a batch, prompt and answer each, end to end.

  Attributes:
    tokens: int32, C of each of R rows.
    positions: int32, of a token in its sequence.
    segments: int32, the sequence of a token, from 1; 0 is padding.
  """

  tokens: Int[Array, 'R C']
  positions: Int[Array, 'R C']
  segments: Int[Array, 'R C']


class Packing(flax.struct.PyTreeNode):
  """What of a batch the model runs, and what of that the head reads.

  What trains is listed: A tokens for each prompt, whosever they are.

  Attributes:
    rows: what the model runs; None: prompts that answers share, and T tokens of
      each answer.
    source: int32, which token of the flattened [B, G, T] is listed; B G T for
      none.
    place: int32, where its prediction stands in the flattened states, which
      are [R, C] or [B, G, T]; beyond them for none.
  """

  rows: Rows | None
  source: Int[Array, 'B A']
  place: Int[Array, 'B A']


class GroupBatch(flax.struct.PyTreeNode):
  """Scored groups: what a training step sees.

  No advantages (the step computes them from rewards, so they cannot be
  stale) and no probabilities (they are exp(logp)).

  Attributes:
    prompts: B prompts.
    responses: G answers each.
    rewards: float32.
    origin: int32, one of EXPERT, TEACHER, SELF.
    member_mask: the slot holds an answer.
    packing: how it runs without its padding, or None; see models.packing.
  """

  prompts: Prompts
  responses: Responses
  rewards: Float[Array, 'B G']
  origin: Int[Array, 'B G']
  member_mask: Bool[Array, 'B G']
  packing: Packing | None = None

  @property
  def token_mask(self) -> Bool[Array, 'B G T']:
    """The tokens that train."""
    mask = self.responses.mask & self.member_mask[..., None]
    trained = self.responses.trained
    return mask if trained is None else mask & trained

  @property
  def end_mask(self) -> Bool[Array, 'B G T']:
    """The tokens that end what they train to say.

    That is the last token of each answer that came to its end, and of each
    turn of the assistant in it. A sampled answer as long as the limit T may
    have been cut there, and has no end.
    """
    mask, length = self.token_mask, self.responses.length
    ended = (self.origin != SELF) | (length < mask.shape[-1])
    following = jnp.pad(mask[..., 1:], ((0, 0), (0, 0), (0, 1)))
    return mask & ended[..., None] & ~following


def length_mask(
  length: Int[Array, '*batch'], size: int
) -> Bool[Array, '*batch {size}']:
  """The first `length` of `size` positions."""
  positions = jnp.expand_dims(jnp.arange(size), tuple(range(length.ndim)))
  return positions < length[..., None]


def host_mask(responses: Responses) -> Bool[np.ndarray, 'B G T']:
  """The tokens that train, of arrays on the host.

  In numpy: nothing is compiled.
  """
  size = responses.tokens.shape[-1]
  mask = np.arange(size) < np.asarray(responses.length)[..., None]
  return mask if responses.trained is None else mask & responses.trained
