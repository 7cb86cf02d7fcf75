"""Given + sampled + scores -> GroupBatch, on the host.

Members stand in a fixed order: experts, teachers, then the policy's own. A
whole group stays together in one optimizer mini-batch. (The official code
sorts the rows of a batch so that its first updates see own samples and its
last ones demonstrations: ZJU-OmniAI/GFT at 763384d, ray_trainer.py:1357.)
"""

import jax
import numpy as np

from gft_jax.batch import SELF, GroupBatch, Prompts, Responses


def join(
  given: Responses, given_origin: np.ndarray, sampled: Responses | None
) -> tuple[Responses, np.ndarray]:
  """Puts given and sampled answers side by side on the group axis.

  Args:
    given: answers of the dataset, [B, E, T]; E may be 0.
    given_origin: [B, E] int32.
    sampled: the policy's answers [B, S, T], or None for no samples.

  Returns:
    Responses [B, E + S, T] and origin [B, E + S], as numpy arrays.
  """
  if sampled is None:
    return jax.tree.map(np.asarray, given), np.asarray(given_origin, np.int32)
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
  origin: np.ndarray,
  rewards: np.ndarray,
) -> GroupBatch:
  """A scored group batch; a response of length 0 is an empty slot.

  Args:
    prompts: B prompts.
    responses: [B, G, T] from `join`.
    origin: [B, G] from `join`.
    rewards: [B, G] float32; ignored at empty slots.

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
