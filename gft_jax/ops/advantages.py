"""Group advantages: what a reward is worth beside the others of its group.

The group is the last axis, so each of these is a reduction over that axis
alone: when B is sharded, no device needs another.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Real, Shaped

from gft_jax.ops import masking
from gft_jax.types import Array


def group_normalized(
  rewards: Real[Array, '*batch G'],
  member_mask: Shaped[Array, '*batch G'],
  *,
  epsilon: float = 1e-6,
  baseline_mask: Shaped[Array, '*batch G'] | None = None,
) -> Float[Array, '*batch G']:
  """Advantages in units of the group's standard deviation (Eq. 4).

      A_k = (r_k - mean(r)) / (std(r) + ε)

  The standard deviation is the sample one (n - 1), in two passes.

  Args:
    rewards: entries under the mask may be NaN.
    member_mask: true, or not 0, where the group has a member.
    epsilon: ε, in units of reward.
    baseline_mask: the members whose mean and std count, for all members; None
      is all of them.

  Returns:
    A: masked members and empty groups 0. A group of one has no spread to
    compare with: mean := 0 and std := 1, so A = r / (1 + ε). Where the members
    that count are equal and another is not, std := 1.

  Source: Eq. 4; verl `compute_grpo_outcome_advantage`, core_algos.py:233-286.
  With a baseline_mask: `grpo_split`, mix_core_alg.py:12-67 of ElliottYan/LUFFY
  at 01f4ae0.
  Deviations: exactly 0 where all members have the same reward, as `is_flat`
  says; float32 rounding of the mean, divided by ε, would give up to 0.1 there.
  """
  group = _group(rewards, member_mask, baseline_mask)

  centred = group.rewards - group.baseline
  squares = masking.select(centred, group.counted) ** 2
  variance = squares.sum(axis=-1, keepdims=True) / jnp.maximum(
    group.count - 1, 1
  )
  std = jnp.sqrt(jnp.where(group.flat, 1, variance))
  return masking.select(centred / (std + epsilon), member_mask)


def mean_centred(
  rewards: Real[Array, '*batch G'],
  member_mask: Shaped[Array, '*batch G'],
  *,
  baseline_mask: Shaped[Array, '*batch G'] | None = None,
) -> Float[Array, '*batch G']:
  """Advantages in units of reward: A_k = r_k - mean(r).

  Args:
    rewards: entries under the mask may be NaN.
    member_mask: true, or not 0, where the group has a member.
    baseline_mask: the members whose mean counts, for all members; None is all
      of them.

  Returns:
    A: masked members 0; exactly 0 where all rewards are equal; a group of one
    keeps its reward.

  Source: Dr. GRPO (arXiv 2503.20783); verl with norm_adv_by_std_in_grpo=False.
  """
  group = _group(rewards, member_mask, baseline_mask)

  return masking.select(group.rewards - group.baseline, member_mask)


def leave_one_out(
  rewards: Real[Array, '*batch G'], member_mask: Shaped[Array, '*batch G']
) -> Float[Array, '*batch G']:
  """Advantages against the others: A_k = r_k - mean(r_j, j != k).

      r_k - mean(r_j, j != k) = n / (n - 1) (r_k - mean(r))

  Args:
    rewards: entries under the mask may be NaN.
    member_mask: true, or not 0, where the group has a member.

  Returns:
    A: masked members 0; exactly 0 where all rewards are equal; a group of one
    keeps its reward.

  Source: RLOO (arXiv 2402.14740); verl core_algos.py:405-454.
  """
  group = _group(rewards, member_mask)

  scale = group.count / jnp.maximum(group.count - 1, 1)
  return masking.select(scale * (group.rewards - group.baseline), member_mask)


def overlong(
  length: Int[Array, '*batch'], *, limit: int, share: float
) -> Float[Array, '*batch']:
  """How far a response reaches into the last share of its limit.

      (length - (1 - share) limit) / (share limit), not below 0

  DAPO takes it off the reward, so that an answer which is cut at the limit is
  not as good as none, and one shortly before it is warned.

  Args:
    length: tokens of each response, its stop token included.
    limit: T, the longest that a response may be.
    share: in (0, 1].

  Returns:
    float32 in [0, 1].

  Source: DAPO (arXiv 2503.14476); overlong_buffer of verl's recipe,
  workers/reward_manager/dapo.py.
  """
  buffer = share * limit
  return jnp.maximum(length - (limit - buffer), 0.0) / buffer


def is_flat(
  rewards: Real[Array, '*batch G'], member_mask: Shaped[Array, '*batch G']
) -> Bool[Array, '*batch']:
  """Whether all members have the same reward, or there are none.

      max(r) - min(r) <= 2 ε max(|r|),  ε = 2^-23

  Rewards that float32 hardly tells apart are the same: a weighted sum may miss
  another by its rounding, and the group's std would make that an advantage.

  Args:
    rewards: entries under the mask are not read.
    member_mask: true, or not 0, where the group has a member.
  """
  chex.assert_equal_shape([rewards, member_mask])

  member_mask = jnp.asarray(member_mask, bool)
  largest = jnp.max(rewards, axis=-1, where=member_mask, initial=-jnp.inf)
  smallest = jnp.min(rewards, axis=-1, where=member_mask, initial=jnp.inf)
  # A NaN reward equals nothing: it reaches the advantages and stops the run.
  near = largest - smallest <= _resolution(largest, smallest)
  return near | (largest == smallest) | ~member_mask.any(axis=-1)


def _resolution(
  one: Real[Array, '*#batch'], other: Real[Array, '*#batch']
) -> Float[Array, '*batch']:
  """What float32 hardly tells apart, for two rewards of this size."""
  size = jnp.maximum(jnp.abs(one), jnp.abs(other))
  return jnp.where(jnp.isfinite(size), 2 * jnp.finfo(jnp.float32).eps * size, 0)


class _Group(NamedTuple):
  rewards: Float[Array, '*batch G']  # 0 under the mask, float32 or wider
  counted: Bool[Array, '*batch G']  # whose statistics count
  count: Int[Array, '*batch 1']  # how many of them
  baseline: Float[Array, '*batch 1']  # their mean; 0 for one alone
  flat: Bool[Array, '*batch 1']  # they are all equal


def _group(
  rewards: Real[Array, '*batch G'],
  member_mask: Shaped[Array, '*batch G'],
  baseline_mask: Shaped[Array, '*batch G'] | None = None,
) -> _Group:
  """The baseline of a flat group is its reward, not the rounded mean of it."""
  rewards = masking.select(rewards, member_mask)
  rewards = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))
  counted = jnp.asarray(member_mask, bool)
  if baseline_mask is not None:
    counted &= jnp.asarray(baseline_mask, bool)
  count = counted.sum(axis=-1, keepdims=True)
  total = masking.select(rewards, counted).sum(axis=-1, keepdims=True)
  largest = jnp.max(
    rewards, axis=-1, keepdims=True, where=counted, initial=-jnp.inf
  )
  flat = is_flat(rewards, counted)[..., None]
  baseline = jnp.where(flat, largest, total / jnp.maximum(count, 1))
  same = jnp.abs(rewards - largest) <= _resolution(largest, rewards)
  rewards = jnp.where(flat & same, largest, rewards)
  return _Group(
    rewards, counted, count, jnp.where(count > 1, baseline, 0), flat
  )
