"""The mesh, and which numbers of prompts fill it.

| axis | shards |
|---|---|
| data | prompts |
| fsdp | prompts, and parameters over their width |
| tensor | heads, MLP width and vocabulary |
"""

import functools
import logging
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from gft_jax.config import MeshConfig, require


def make_mesh(config: MeshConfig) -> Mesh:
  """The mesh (data, fsdp, tensor) on the first devices.

  Its axes are Auto: XLA propagates the shardings.

  Raises:
    ConfigError: there are fewer devices than the axes need, or, with several
      processes, not exactly as many, or as `mesh_of`.
  """
  shape = (config.data, config.fsdp, config.tensor)
  needed, present = int(np.prod(shape)), jax.device_count()
  asked = f'mesh data={shape[0]} x fsdp={shape[1]} x tensor={shape[2]}'
  require(
    needed <= present,
    f'{asked} needs {needed} devices, but there are {present}',
  )
  require(
    jax.process_count() == 1 or needed == present,
    f'{asked} uses {needed} of {present} devices; {jax.process_count()}'
    ' processes must use all of them',
  )
  return mesh_of(config, jax.devices()[:needed])


@functools.cache
def warn_of_idle_devices(config: MeshConfig, *sizes: int) -> None:
  """Says once which devices the mesh leaves idle, and what would use them.

  Args:
    config: the mesh.
    *sizes: numbers of prompts that the devices would have to divide.
  """
  idle = jax.device_count() - config.size
  if idle <= 0:
    return
  shared = config.fsdp * config.tensor
  fitting = max(
    count
    for count in range(1, jax.device_count() // shared + 1)
    if count == 1 or all(size % (count * config.fsdp) == 0 for size in sizes)
  )
  better = (
    f'mesh.data={fitting} gives prompts to {fitting * shared} devices'
    if fitting > config.data
    else f'batches of {" and ".join(map(str, sizes))} prompts cannot fill more'
  )
  logging.warning(
    '%d of %d devices stay idle; %s', idle, jax.device_count(), better
  )


def mesh_of(config: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
  """The mesh on these devices, those of each process side by side.

  `jax.make_mesh` would follow the torus of a TPU, and a process would hold rows
  that are not next to each other.

  Raises:
    ConfigError: `tensor` reaches over several processes.
  """
  ordered = np.empty(len(devices), object)
  ordered[:] = sorted(devices, key=lambda d: (d.process_index, d.id))
  _check_owners('mesh.tensor', ordered, config.tensor)
  return Mesh(
    ordered.reshape(config.data, config.fsdp, config.tensor),
    ('data', 'fsdp', 'tensor'),
    axis_types=(AxisType.Auto,) * 3,
  )


def rollout_mesh(mesh: Mesh, config: MeshConfig) -> Mesh:
  """The same devices as the sampler sees them.

  With `rollout_tensor` that many devices share the parameters and a prompt, and
  nobody waits for parameters while decoding.

  Raises:
    ConfigError: the devices that share a prompt are not all of one process.
  """
  size = config.rollout_tensor
  if not size:
    return mesh
  _check_owners('mesh.rollout_tensor', mesh.devices.ravel(), size)
  return Mesh(
    mesh.devices.reshape(-1, 1, size), mesh.axis_names, mesh.axis_types
  )


def _check_owners(setting: str, devices: np.ndarray, size: int) -> None:
  """`size` devices share a prompt, which one process loads and grades."""
  for sharing in devices.reshape(-1, size):
    owners = sorted({device.process_index for device in sharing})
    require(
      len(owners) == 1,
      f'{setting}={size}: processes {owners} would hold the same prompts; it must'
      ' divide the devices of a process',
    )


def check_divisible(
  batch_size: int, config: MeshConfig, *, parts: int = 1
) -> None:
  """Every part of a batch must fill the devices that hold prompts.

  Args:
    batch_size: B, prompts over all devices.
    config: the mesh.
    parts: mini-batches times micro-batches that B is cut into.

  Raises:
    ConfigError: names the numbers that disagree.
  """
  rows = config.data * config.fsdp
  require(
    batch_size % (parts * rows) == 0,
    f'data.batch_size={batch_size} is not a multiple of {parts * rows}:'
    f' mesh.data={config.data} x mesh.fsdp={config.fsdp} devices hold prompts'
    + (f', optimizer.mini_batches x micro_batches={parts}' * (parts > 1)),
  )


def prompt_holders(config: MeshConfig) -> tuple[int, int]:
  """Devices that hold different prompts, in training and in the sampler."""
  return (
    config.data * config.fsdp,
    config.size // (config.rollout_tensor or config.tensor),
  )


def even_rows(count: int, most: int, config: MeshConfig) -> int:
  """Rows of each batch, where `count` rows are asked in equal batches.

  There are as few batches as `most` allows, and a batch has no more rows than
  it takes to fill the devices that hold prompts, in both layouts.

  Args:
    count: rows in all.
    most: rows of a batch; a multiple of those devices.
    config: the mesh.
  """
  batches = max(math.ceil(count / most), 1)
  holders = math.lcm(*prompt_holders(config))
  return max(math.ceil(count / batches / holders), 1) * holders


def check_rows(name: str, rows: int, config: MeshConfig) -> None:
  """What is sampled must fill the devices that hold prompts, in both layouts.

  Raises:
    ConfigError: the setting `name` does not.
  """
  for holders in prompt_holders(config):
    require(
      rows % holders == 0,
      f'{name}={rows} is not a multiple of the {holders} devices that hold'
      ' prompts',
    )
