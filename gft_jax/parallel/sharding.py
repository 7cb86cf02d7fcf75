"""Where arrays lie on the mesh, and who computes which prompts.

One table of partition rules places every parameter. A group is never split: B
is sharded, G is not.
"""

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gft_jax.config import ConfigError
from gft_jax.types import Array, Params, Tree

Arguments = ParamSpec('Arguments')
Result = TypeVar('Result')

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


def parameter_shardings(params: Tree, mesh: Mesh) -> Tree:
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


def to_global(mesh: Mesh, tree: Tree) -> Tree:
  """Host-local arrays [B / processes, ...] -> sharded global arrays [B, ...].

  Each process contributes its own rows, in the order of the processes.
  """
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    tree,
  )


def to_local(mesh: Mesh, tree: Tree) -> Tree:
  """The inverse of `to_global`: this process's rows, as numpy arrays."""
  local = multihost_utils.global_array_to_host_local_array(
    tree, mesh, PartitionSpec(BATCH_AXES)
  )
  return jax.tree.map(np.asarray, local)


def prompt_shards(mesh: Mesh | AbstractMesh) -> int:
  """Devices that hold different prompts."""
  return mesh.shape['data'] * mesh.shape['fsdp']


# What follows asks for a split of what is computed, on the mesh of the context
# (`with jax.set_mesh(mesh)`). Without one, on one device, or on a device's own
# part of the prompts, it asks for nothing.


def over_prompts(
  function: Callable[Arguments, Result], *, whole: tuple[int, ...]
) -> Callable[Arguments, Result]:
  """`function(*args)`, run by each device on its own prompts.

  What is whole is gathered over the axes that hold prompts, once, and its
  gradient is added over them, once; what is sharded over `tensor` stays so.
  What the function loops over then needs no other device.

  Args:
    function: arrays [B, ...] in, arrays [B, ...] out, every row by itself.
    whole: indices of those arguments that have no B.
  """

  def run(*args: Arguments.args, **keywords: Arguments.kwargs) -> Result:
    if not _prompts_are_split():
      return function(*args, **keywords)
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
    return mapped(*args, **keywords)

  return run


def over_heads(function: Callable[..., Array], *args: object) -> Array:
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


def split_prompts(tree: Tree) -> Tree:
  """Arrays [B, ...], of which each device computes its own prompts.

  Where it is not said XLA may rather leave parameters where they are, and make
  every device compute a part of the width of all prompts.
  """
  if not _prompts_are_split():
    return tree
  return jax.lax.with_sharding_constraint(tree, PartitionSpec(BATCH_AXES))


def lay_out(params: Tree, mesh: Mesh) -> Tree:
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


def _fitting(
  rule: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh
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
    f'no rule of parallel.sharding.PARTITION_RULES matches the parameter {name}'
  )


def create_sharded(
  create: Callable[[Params], Tree], params: Params, mesh: Mesh
) -> Tree:
  """`create(params)` in the shardings of the partition rules."""
  shardings = parameter_shardings(jax.eval_shape(create, params), mesh)
  return jax.jit(create, out_shardings=shardings)(params)
