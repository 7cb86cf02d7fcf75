"""Devices: one mesh, one table of partition rules, and the paper's loss on it.

The production path is `jit` with the shardings below on a mesh of three axes:

| axis | shards |
|---|---|
| data | prompts |
| fsdp | prompts, and parameters over their width |
| tensor | heads, MLP width and vocabulary |

A group is never split: B is sharded, G is not. The same loss is written with
`pmap` and `shard_map` at the end, with a psum of WeightedMeans as its one
collective.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gft_jax.config import ConfigError, MeshConfig, require
from gft_jax.ops import advantages as advantages_lib
from gft_jax.ops import losses, masking

# The axes that hold different prompts.
BATCH_AXES = ('data', 'fsdp')

# End of a parameter's path -> its partition. The first match counts, also for
# the moments of the optimizer, whose paths end alike. blocks/* are stacked [L].
# Of an adapter, A is cut like the input of its projection and B like the
# output; the rank, r, is whole.
PARTITION_RULES = (
  (r'embedding', PartitionSpec('tensor', 'fsdp')),  # [V, D]
  (r'head', PartitionSpec('fsdp', 'tensor')),  # [D, V]
  (r'score', PartitionSpec('fsdp', None)),  # [D, 1], of a reward model
  (
    r'(query|key|value)/kernel',  # [L, D, H, K]
    PartitionSpec(None, 'fsdp', 'tensor', None),
  ),
  (r'(query|key|value)/bias', PartitionSpec(None, 'tensor', None)),  # [L, H, K]
  (
    r'output/kernel',  # [L, H, K, D]
    PartitionSpec(None, 'tensor', None, 'fsdp'),
  ),
  (r'(gate|up)/kernel', PartitionSpec(None, 'fsdp', 'tensor')),  # [L, D, M]
  (r'down/kernel', PartitionSpec(None, 'tensor', 'fsdp')),  # [L, M, D]
  (r'norm/scale', PartitionSpec()),  # [L, D] or [D]
  (
    r'(query|key|value|gate|up)/lora_a',  # [L, D, r]
    PartitionSpec(None, 'fsdp', None),
  ),
  # [L, H, K, r] and [L, M, r]
  (r'(output|down)/lora_a', PartitionSpec(None, 'tensor')),
  # [L, r, H, K] and [L, r, M]
  (r'(query|key|value|gate|up)/lora_b', PartitionSpec(None, None, 'tensor')),
  (r'(output|down)/lora_b', PartitionSpec(None, None, 'fsdp')),  # [L, r, D]
)


# Seconds without a sign of life after which a process counts as gone.
HEARTBEAT = 60

# Words of gloo (CPU), NCCL (GPU), the coordination service and Orbax.
_LOST = r'(?i)gloo|nccl|connection (closed|reset)|coordination|barrier'


def initialize_processes() -> None:
  """Joins the other processes of the run, if there are any.

  Call it before anything touches a device; every process runs the same
  program. Three variables describe the run: JAX_COORDINATOR_ADDRESS
  (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID. Without them
  this process is alone. On a TPU pod or under Slurm, GFT_JAX_PROCESSES=auto
  lets JAX find them.

  A process that is gone is noticed when the next collective fails, or, where
  nothing says so, for instance because the machine is gone, after HEARTBEAT
  seconds.

  Raises:
    ConfigError: some of the three are set, but not all, or not as numbers; or
      JAX finds no processes.
  """
  found = os.environ.get('GFT_JAX_PROCESSES')
  if found:
    require(found == 'auto', f'GFT_JAX_PROCESSES={found!r} is not auto')
    try:
      jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    except ValueError as error:
      raise ConfigError(
        f'GFT_JAX_PROCESSES=auto: JAX finds no other process here ({error})'
      ) from error
    _compile_anew()
    return
  names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
  missing = [name for name in names if name not in os.environ]
  if len(missing) == len(names):
    return
  require(
    not missing, f'a run of several processes needs {", ".join(missing)} too'
  )
  address, *numbers = (os.environ[name] for name in names)
  require(
    all(number.isdecimal() for number in numbers),
    f'JAX_NUM_PROCESSES={numbers[0]!r} and JAX_PROCESS_ID={numbers[1]!r} must be'
    ' numbers',
  )
  jax.distributed.initialize(
    address, *map(int, numbers), heartbeat_timeout_seconds=HEARTBEAT
  )
  _compile_anew()


def _compile_anew() -> None:
  """Programs for several processes on CPUs do not come from the cache.

  With jaxlib 0.10 those that did hung, or their sums were wrong: a gradient
  norm of 66 for 1.6.
  """
  if jax.default_backend() == 'cpu':
    jax.config.update('jax_enable_compilation_cache', False)


class LostProcessError(ConnectionError):
  """Another process of the run is gone; the message is one line."""


@contextlib.contextmanager
def connected() -> Iterator[None]:
  """Raises LostProcessError where a collective says that a process is gone."""
  try:
    yield
  except (jax.errors.JaxRuntimeError, TimeoutError) as error:
    reason = ' '.join(str(error).split())
    if jax.process_count() == 1 or not re.search(_LOST, reason):
      raise
    raise LostProcessError(
      f'process {jax.process_index()} cannot reach another process of the run;'
      ' the last checkpoint stands, start all of them again'
      f' ({reason[:160]})'
    ) from error


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


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
  """A tree of NamedShardings for parameters, or for a whole train state.

  Scalars are replicated, and so is a dimension that its axis does not divide.

  Args:
    params: tree of arrays or shapes.
    mesh: of `make_mesh`.

  Raises:
    ConfigError: no rule matches a path.
  """

  def sharding(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    rule = PartitionSpec() if leaf.ndim == 0 else _rule(name)
    return NamedSharding(mesh, _fitting(rule, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(sharding, params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Prompts over data and fsdp; groups and tokens whole."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def to_global(mesh: Mesh, tree: Any) -> Any:
  """Host-local arrays [B / processes, ...] -> sharded global arrays [B, ...].

  Each process contributes its own rows, in the order of the processes.
  """
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    tree,
  )


def to_local(mesh: Mesh, tree: Any) -> Any:
  """The inverse of `to_global`: this process's rows, as numpy arrays."""
  local = multihost_utils.global_array_to_host_local_array(
    tree, mesh, PartitionSpec(BATCH_AXES)
  )
  return jax.tree.map(np.asarray, local)


def prompt_shards(mesh: Mesh) -> int:
  """Devices that hold different prompts."""
  return mesh.shape['data'] * mesh.shape['fsdp']


# What follows asks for a split of what is computed, on the mesh of the context
# (`with jax.set_mesh(mesh)`). Without one, on one device, or on a device's own
# part of the prompts, it asks for nothing.


def over_prompts(
  function: Callable[..., Any], *, whole: tuple[int, ...]
) -> Callable[..., Any]:
  """`function(*args)`, run by each device on its own prompts.

  What is whole is gathered over the axes that hold prompts, once, and its
  gradient is added over them, once; what is sharded over `tensor` stays so.
  What the function loops over then needs no other device.

  Args:
    function: arrays [B, ...] in, arrays [B, ...] out, every row by itself.
    whole: indices of those arguments that have no B.
  """

  def run(*args):
    if not _prompts_are_split():
      return function(*args)
    rows = PartitionSpec(BATCH_AXES)
    mapped = jax.shard_map(
      function,
      in_specs=tuple(
        PartitionSpec() if i in whole else rows for i in range(len(args))
      ),
      out_specs=rows,
      axis_names=set(BATCH_AXES),
      check_vma=False,
    )
    return mapped(*args)

  return run


def over_heads(function: Callable[..., jax.Array], *args: Any) -> jax.Array:
  """`function(*args)`, run by each device on its own prompts and heads.

  For kernels, which XLA cannot split: on several TPUs call the model on the mesh
  of a context.

  Args:
    function: its result is like the first argument.
    *args: trees of arrays [B, ..., H, K] of four axes or more, whose heads
      `tensor` divides, and of others [B, ...].
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = set(mesh.axis_names) - set(mesh.manual_axes)
  if mesh.size <= 1 or not axes:
    return function(*args)
  rows = BATCH_AXES if axes.issuperset(BATCH_AXES) else None

  def spec(x):
    heads = (*[None] * (x.ndim - 3), 'tensor') if x.ndim > 3 else ()
    return PartitionSpec(rows, *heads)

  specs = jax.tree.map(spec, args)
  mapped = jax.shard_map(
    function,
    in_specs=specs,
    out_specs=specs[0],
    axis_names=axes,
    check_vma=False,
  )
  return mapped(*args)


def split_prompts(tree: Any) -> Any:
  """Arrays [B, ...], of which each device computes its own prompts.

  Where it is not said XLA may rather leave parameters where they are, and make
  every device compute a part of the width of all prompts.
  """
  if not _prompts_are_split():
    return tree
  return jax.lax.with_sharding_constraint(tree, PartitionSpec(BATCH_AXES))


def lay_out(params: Any, mesh: Mesh) -> Any:
  """Parameters by the partition rules of `mesh`, from another of its devices.

  In two steps: first all devices exchange parts of the dimension that `tensor`
  will split, then those with equal parts share them. In one, XLA would give the
  whole array to every device.
  """
  both = ('tensor', 'data')
  holders = mesh.shape['tensor'] * mesh.shape['data']

  def one(x, sharding):
    apart = PartitionSpec(
      *(
        both if axis == 'tensor' and size % holders == 0 else axis
        for axis, size in zip(sharding.spec, x.shape)
      )
    )
    for spec in (apart, sharding.spec):
      place = NamedSharding(mesh, spec)
      x = jax.lax.with_sharding_constraint(x, place)
    return x

  return jax.tree.map(one, params, parameter_shardings(params, mesh))


def whole_parameter(x: jax.Array, name: str) -> jax.Array:
  """A layer's parameter, whole over the axes that hold prompts.

  Its gradient is added up in the dtype of the computation (the official code
  adds in float32) and split again. Where it is not said, a TPU's
  compiler multiplies by one shard after another, and each time reads and writes
  all the results.

  Args:
    x: without the axis L.
    name: the end of its path, for PARTITION_RULES.
  """
  if not _prompts_are_split():
    return x
  mesh = jax.sharding.get_abstract_mesh()
  split = _fitting(_rule(name)[-x.ndim :], x.shape, mesh)
  whole = PartitionSpec(*(None if a in BATCH_AXES else a for a in split))
  return _make_whole(split, whole, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _make_whole(split, whole, x):
  del split
  return jax.lax.with_sharding_constraint(x, whole)


_make_whole.defvjp(
  lambda split, whole, x: (_make_whole(split, whole, x), None),
  lambda split, whole, _, gradient: (
    jax.lax.with_sharding_constraint(gradient, split),
  ),
)


def platform() -> str:
  """'cpu', 'gpu' or 'tpu': of the mesh, whose devices may not be here."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def tensor_shards() -> int:
  """Devices among which the heads are divided."""
  return jax.sharding.get_abstract_mesh().shape.get('tensor', 1)


def _prompts_are_split() -> bool:
  mesh = jax.sharding.get_abstract_mesh()
  return not (mesh.empty or mesh.manual_axes) and prompt_shards(mesh) > 1


def largest(*numbers: int) -> tuple[int, ...]:
  """The largest of each number over all processes; every process must ask."""
  found = multihost_utils.process_allgather(np.array(numbers))
  return tuple(found.reshape(-1, len(numbers)).max(axis=0).tolist())


def anywhere(*flags: bool) -> tuple[bool, ...]:
  """Which flags any process of the run raises; every process must ask."""
  raised = multihost_utils.process_allgather(np.array(flags))
  return tuple(raised.reshape(-1, len(flags)).any(axis=0).tolist())


def barrier() -> None:
  """Returns when every process has come here."""
  anywhere(False)


def gather(tree: Any) -> Any:
  """Host arrays [B / processes, ...] -> [B, ...], the same in every process.

  The rows stand in the order of the processes, as in `to_global`. Every process
  must ask. Numbers of 64 bits would be rounded to 32.
  """
  if jax.process_count() == 1:
    return tree
  return multihost_utils.process_allgather(tree, tiled=True)


def own_rows(count: int) -> slice:
  """Which of `count` rows are this process's; the inverse of `gather`."""
  share = count // jax.process_count()
  return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def exchange(value: Any) -> list[Any]:
  """What each process has to say, in their order; every process must ask.

  Args:
    value: JSON types; a float arrives bit for bit.
  """
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  # A power of two: each size is another program to compile.
  width = 1 << (max(largest(len(text))) - 1).bit_length()
  texts = gather(np.pad(text, (0, width - len(text)))[None])
  return [json.loads(row.tobytes().rstrip(b'\0')) for row in texts]


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
    functools.partial(gft_loss, tau=tau, axis_name=BATCH_AXES),
    mesh=mesh,
    in_specs=PartitionSpec(BATCH_AXES),
    out_specs=PartitionSpec(),
  )
  return mapped(logp, rewards, member_mask, token_mask)


def _on_device(logp, rewards, member_mask, token_mask, tau):
  return gft_loss(
    logp, rewards, member_mask, token_mask, tau=tau, axis_name='devices'
  )


def _fitting(
  rule: PartitionSpec, shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
  """The rule without the axes that do not divide their dimension."""
  return PartitionSpec(
    *(
      axis if axis and size % mesh.shape[axis] == 0 else None
      for axis, size in zip(rule, shape)
    )
  )


def _rule(name: str) -> PartitionSpec:
  for pattern, rule in PARTITION_RULES:
    if re.search(pattern + '$', name):
      return rule
  raise ConfigError(
    f'no rule of parallel.PARTITION_RULES matches the parameter {name}'
  )
