"""The paper's loss under pmap and shard_map.

One collective: a psum of WeightedMeans.
"""

import functools

import jax
from jax.sharding import Mesh, PartitionSpec

from gft_jax.ops import advantages as advantages_lib
from gft_jax.ops import losses, masking
from gft_jax.parallel import sharding


def gft_loss(
  logp: jax.Array,
  rewards: jax.Array,
  member_mask: jax.Array,
  token_mask: jax.Array,
  *,
  tau: float,
  axis_name: masking.AxisName = None,
) -> jax.Array:
  """The paper's loss, from log-probabilities and rewards to a number.

      -Σ_bkt A_bk C(p_bkt) log p_bkt / tokens

  Advantages (Eq. 4) and coefficients (Eq. 5) stay on the device; the total
  and the number of tokens are added over all of them.

  Args:
    logp: [B, G, T]; masked entries may be -inf.
    rewards: [B, G].
    member_mask: [B, G], the group has this member.
    token_mask: [B, G, T], the token trains.
    tau: threshold of the coefficient.
    axis_name: mapped axes, under pmap or shard_map.

  Returns:
    A scalar, the same on every device.
  """
  logp = masking.select(logp, token_mask)
  advantages = advantages_lib.group_normalized(rewards, member_mask)
  loss = losses.gft_token_loss(logp, advantages, tau=tau)
  return masking.token_mean(loss, token_mask, axis_name=axis_name).value


def pmapped_gft_loss(
  logp: jax.Array,
  rewards: jax.Array,
  member_mask: jax.Array,
  token_mask: jax.Array,
  *,
  tau: float,
) -> jax.Array:
  """`gft_loss` under pmap: arrays [devices, B, ...], a scalar out.

  Differentiate it from outside; inside, each device would see the psum's
  gradient once per device.
  """
  mapped = jax.pmap(
    _on_device,
    axis_name='devices',
    in_axes=(0, 0, 0, 0, None),
    out_axes=None,
  )
  return mapped(logp, rewards, member_mask, token_mask, tau)


def shard_mapped_gft_loss(
  mesh: Mesh,
  logp: jax.Array,
  rewards: jax.Array,
  member_mask: jax.Array,
  token_mask: jax.Array,
  *,
  tau: float,
) -> jax.Array:
  """`gft_loss` under shard_map: B over the data and fsdp axes of the mesh."""
  mapped = jax.shard_map(
    functools.partial(gft_loss, tau=tau, axis_name=sharding.BATCH_AXES),
    mesh=mesh,
    in_specs=PartitionSpec(sharding.BATCH_AXES),
    out_specs=PartitionSpec(),
  )
  return mapped(logp, rewards, member_mask, token_mask)


def _on_device(logp, rewards, member_mask, token_mask, tau):
  return gft_loss(
    logp, rewards, member_mask, token_mask, tau=tau, axis_name='devices'
  )
