"""Group advantages: what a reward is worth beside the others of its group.

The group is the last axis, so each of these is a reduction over that axis
alone: when B is sharded, no device needs another.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from gft_jax.ops import masking


def group_normalized(
  rewards: chex.Array, member_mask: chex.Array, *, epsilon: float = 1e-6
) -> chex.Array:
  """Advantages in units of the group's standard deviation (Eq. 4).

      A_k = (r_k - mean(r)) / (std(r) + ε)

  The standard deviation is the sample one (n - 1), in two passes.

  Args:
    rewards: [..., G], usually [B, G]; entries under the mask may be NaN.
    member_mask: [..., G], true where the group has a member.
    epsilon: ε, in units of reward.

  Returns:
    [..., G]: masked members and empty groups 0. A group of one has no spread
    to compare with: mean := 0 and std := 1, so A = r / (1 + ε).

  Source: Eq. 4; verl `compute_grpo_outcome_advantage`, core_algos.py:233-286.
  Deviations: exactly 0 where all members have the same reward; float32
  rounding of the mean, divided by ε, would give up to 0.1 there.
  """
  group = _group(rewards, member_mask)

  count = jnp.maximum(group.count - 1, 1)
  centred = masking.select(group.rewards - group.baseline, member_mask)
  variance = (centred**2).sum(axis=-1, keepdims=True) / count
  std = jnp.sqrt(jnp.where(group.flat, 1, variance))
  return _advantages(centred / (std + epsilon), group, member_mask)


def mean_centred(rewards: chex.Array, member_mask: chex.Array) -> chex.Array:
  """Advantages in units of reward: A_k = r_k - mean(r).

  Args:
    rewards: [..., G], usually [B, G].
    member_mask: [..., G].

  Returns:
    [..., G]: masked members 0; exactly 0 where all rewards are equal; a group
    of one keeps its reward.

  Source: Dr. GRPO (arXiv 2503.20783); verl with norm_adv_by_std_in_grpo=False.
  """
  group = _group(rewards, member_mask)

  return _advantages(group.rewards - group.baseline, group, member_mask)


def leave_one_out(rewards: chex.Array, member_mask: chex.Array) -> chex.Array:
  """Advantages against the others: A_k = r_k - mean(r_j, j != k).

  Equal to `mean_centred` times n / (n - 1).

  Args:
    rewards: [..., G], usually [B, G].
    member_mask: [..., G].

  Returns:
    [..., G]: masked members 0; exactly 0 where all rewards are equal; a group
    of one keeps its reward.

  Source: RLOO (arXiv 2402.14740); verl core_algos.py:405-454.
  """
  group = _group(rewards, member_mask)

  others = group.rewards.sum(axis=-1, keepdims=True) - group.rewards
  baseline = others / jnp.maximum(group.count - 1, 1)
  return _advantages(group.rewards - baseline, group, member_mask)


def is_flat(rewards: chex.Array, member_mask: chex.Array) -> chex.Array:
  """[...] bool: all members have the same reward, or there are none.

  Args:
    rewards: [..., G].
    member_mask: [..., G].
  """
  chex.assert_equal_shape([rewards, member_mask])

  member_mask = jnp.asarray(member_mask, bool)
  largest = jnp.max(rewards, axis=-1, where=member_mask, initial=-jnp.inf)
  smallest = jnp.min(rewards, axis=-1, where=member_mask, initial=jnp.inf)
  # A NaN reward equals nothing: it reaches the advantages and stops the run.
  return (largest == smallest) | ~member_mask.any(axis=-1)


class _Group(NamedTuple):
  rewards: chex.Array  # [..., G], 0 under the mask, float32 or wider
  count: chex.Array  # [..., 1]
  baseline: chex.Array  # [..., 1], the mean; 0 for a group of one
  flat: chex.Array  # [..., 1] bool


def _group(rewards: chex.Array, member_mask: chex.Array) -> _Group:
  rewards = masking.select(rewards, member_mask)
  rewards = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))
  count = jnp.asarray(member_mask, bool).sum(axis=-1, keepdims=True)
  mean = rewards.sum(axis=-1, keepdims=True) / jnp.maximum(count, 1)
  return _Group(
    rewards,
    count,
    jnp.where(count == 1, 0, mean),
    is_flat(rewards, member_mask)[..., None],
  )


def _advantages(
  values: chex.Array, group: _Group, member_mask: chex.Array
) -> chex.Array:
  """Exact zeros for flat groups of several, and under the mask."""
  values = jnp.where(group.flat & (group.count > 1), 0, values)
  return masking.select(values, member_mask)
