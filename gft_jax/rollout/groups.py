"""Given + sampled + scores -> GroupBatch, on the host.

Members stand in a fixed order: experts, teachers, then the policy's own. A
whole group stays together in one optimizer mini-batch. (The official code
sorts the rows of a batch so that its first updates see own samples and its
last ones demonstrations: ZJU-OmniAI/GFT at 763384d, ray_trainer.py:1357.)
"""

import sys

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from gft_jax.batch import SELF, GroupBatch, Prompts, Responses
from gft_jax.ops import advantages
from gft_jax.types import Array, Tree


def join(
  given: Responses,
  given_origin: Int[np.ndarray, 'B E'],
  sampled: Responses | None,
) -> tuple[Responses, Int[np.ndarray, 'B G']]:
  """Puts given and sampled answers side by side on the group axis.

  Args:
    given: answers of the dataset, E each; E may be 0.
    given_origin: int32.
    sampled: the policy's answers, S each, or None for no samples.

  Returns:
    G = E + S responses each and their origin, as numpy arrays. Where some
    tokens of the given do not train, all of the sampled do.
  """
  if sampled is None:
    return jax.tree.map(np.asarray, given), np.asarray(given_origin, np.int32)
  if given.trained is not None:
    sampled = sampled.replace(trained=np.ones(sampled.tokens.shape, bool))
  responses = jax.tree.map(
    lambda a, b: np.concatenate([np.asarray(a), np.asarray(b)], axis=1),
    given,
    sampled,
  )
  own = np.full(sampled.length.shape, SELF, np.int32)
  return responses, np.concatenate([given_origin, own], axis=1, dtype=np.int32)


def build(
  prompts: Prompts,
  responses: Responses,
  origin: Int[Array, 'B G'],
  rewards: Float[Array, 'B G'],
) -> GroupBatch:
  """A scored group batch; a response of length 0 is an empty slot.

  Args:
    prompts: B prompts.
    responses: G each, from `join`.
    origin: from `join`.
    rewards: float32; ignored at empty slots.

  Raises:
    ValueError: shapes that disagree, with both.
  """
  if rewards.shape != responses.length.shape:
    raise ValueError(
      f'rewards of shape {rewards.shape} for responses of shape'
      f' {responses.length.shape}'
    )
  member_mask = np.asarray(responses.length) > 0
  return GroupBatch(
    prompts=prompts,
    responses=responses,
    rewards=np.where(member_mask, rewards, 0).astype(np.float32),
    origin=np.asarray(origin, np.int32),
    member_mask=member_mask,
  )


def flat(batch: GroupBatch) -> Bool[np.ndarray, ' B']:
  """Groups whose rewards are all equal, so that none has a lesson."""
  return np.asarray(advantages.is_flat(batch.rewards, batch.member_mask))


def refill(batch: GroupBatch, further: GroupBatch) -> GroupBatch:
  """Replaces flat groups, in order, by those of `further` that are not.

  Args:
    batch: B groups.
    further: groups of the same shape.

  Returns:
    B groups; the flat ones that `further` cannot replace stay.
  """
  vacant, useful = np.flatnonzero(flat(batch)), np.flatnonzero(~flat(further))
  count = min(len(vacant), len(useful))

  def one(x, y):
    x = np.array(x)
    x[vacant[:count]] = np.asarray(y)[useful[:count]]
    return x

  return jax.tree.map(one, batch, further)


# The narrowest prompts, in tokens: each width is another program to compile.
NARROWEST = 64


def pad_rows(tree: Tree, rows: int) -> Tree:
  """Repeats the last row until the first axis has `rows` rows."""

  def one(x):
    missing = rows - x.shape[0]
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])

  return jax.tree.map(one, tree)


def width_of(longest: int, most: int = sys.maxsize) -> int:
  """The least of NARROWEST, twice that, ..., and `most` that holds a row."""
  width = NARROWEST
  while width < longest:
    width *= 2
  return min(width, most)


def unscored(prompts: Prompts, given: Responses, rows: int) -> GroupBatch:
  """A batch without rewards, padded to `rows` rows with empty slots."""
  real = len(given.length)
  prompts, given = pad_rows((prompts, given), rows)
  given.length[real:] = 0
  zeros = np.zeros(given.length.shape, np.float32)
  return build(prompts, given, zeros.astype(np.int32), zeros)
