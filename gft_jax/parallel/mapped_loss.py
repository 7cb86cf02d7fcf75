"""The paper's loss under pmap and shard_map.

One collective: a psum of WeightedMeans.
"""

import functools

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Bool, Float

from gft_jax.ops import advantages as advantages_lib
from gft_jax.ops import losses, masking
from gft_jax.parallel import sharding
from gft_jax.types import Array


def gft_loss(
  logp: Float[Array, 'B G T'],
  rewards: Float[Array, 'B G'],
  member_mask: Bool[Array, 'B G'],
  token_mask: Bool[Array, 'B G T'],
  *,
  tau: Float[Array, ''] | float,
  axis_name: masking.AxisName = None,
) -> Float[Array, '']:
  """The paper's loss, from log-probabilities and rewards to a number.

      -Σ_bkt A_bk C(p_bkt) log p_bkt / tokens

  Advantages (Eq. 4) and coefficients (Eq. 5) stay on the device; the total
  and the number of tokens are added over all of them.

  Args:
    logp: masked entries may be -inf.
    rewards: of the responses.
    member_mask: the group has this member.
    token_mask: the token trains.
    tau: threshold of the coefficient.
    axis_name: mapped axes, under pmap or shard_map.

  Returns:
    The same on every device.
  """
  logp = masking.select(logp, token_mask)
  advantages = advantages_lib.group_normalized(rewards, member_mask)
  loss = losses.gft_token_loss(logp, advantages, tau=tau)
  return masking.token_mean(loss, token_mask, axis_name=axis_name).value


def pmapped_gft_loss(
  logp: Float[Array, 'devices B G T'],
  rewards: Float[Array, 'devices B G'],
  member_mask: Bool[Array, 'devices B G'],
  token_mask: Bool[Array, 'devices B G T'],
  *,
  tau: Float[Array, ''] | float,
) -> Float[Array, '']:
  """`gft_loss` under pmap: the first axis of each array is the devices'.

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
  logp: Float[Array, 'B G T'],
  rewards: Float[Array, 'B G'],
  member_mask: Bool[Array, 'B G'],
  token_mask: Bool[Array, 'B G T'],
  *,
  tau: Float[Array, ''] | float,
) -> Float[Array, '']:
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
