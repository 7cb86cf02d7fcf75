"""Compiles a recipe for a real TPU slice, on a machine without one.

  pip install 'jax[tpu]'
  python experiments/pods/compile_check.py --topology v5e:4x4 \\
    --config experiments/configs/paper/gft.py

The training step and the sampler of every stage, at full lengths, through the
TPU compiler itself (libtpu, jax.experimental.topologies). With --rows 3 batches
are packed, and their sequences take three eighths of the rows that they have
without packing (gft_jax.models.packing). Prints per program:
HBM of a chip, what is held and what there is; operations of the model, and of
all products; collectives by kind, how many a chip runs and the bytes of their
results; the seconds of a roofline, and the model FLOP utilisation that they
give. Nothing is downloaded: the shape of a hub id is that of models.presets.
Exit code 2: it does not fit.
"""

import functools
import json
import math
import os
import re
import sys
from typing import Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))

import command
import roofline

from gft_jax.config import Config, ConfigError, for_stage, one_of, require


class Chip(NamedTuple):
  """One chip (docs.cloud.google.com/tpu/docs: v4, v5e, v5p, v6e).

  Attributes:
    hbm_gb: its memory, in GiB; of v5e and v6e what their compiler gives.
    tflops: bfloat16, peak.
    bandwidth_gb_s: of the memory.
    ring_gb_s: what arrives over the two links of one axis of the torus: the
      bidirectional bandwidth of a chip over its number of ports.
    cores: TensorCores, that the public names v4-32 and v5p-32 count; v5e-16 and
      v6e-16 count chips, whose core is one.
  """

  hbm_gb: float
  tflops: float
  bandwidth_gb_s: float
  ring_gb_s: float
  cores: int


CHIPS = {
  'v4': Chip(32, 275, 1228, 100, 2),
  'v5e': Chip(15.75, 197, 819, 100, 1),
  'v5p': Chip(95, 459, 2765, 200, 2),
  'v6e': Chip(31.25, 918, 1640, 200, 1),
}


class Work(NamedTuple):
  """What a program has to do, over all chips.

  Attributes:
    model_flops: 2 operations for each parameter and token forward, 4 backward.
    flops: of all products: attention, the head and what is computed twice too.
    traffic: bytes that each chip reads from its memory at least, where the
      program does not say how often its loops run; 0: as the program says.
    held: bytes that each chip holds meanwhile of what the program does not use.
    ladder: turns of the sampler's loops, each of which goes on with half the rows.
  """

  model_flops: float
  flops: float
  traffic: float = 0
  held: float = 0
  ladder: int = 0


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  command.add_config(parser)
  parser.add_argument(
    '--topology', required=True, help='v5e:4x4, v5p:2x2x4, v6e:16x16, v4:2x2x4'
  )
  parser.add_argument(
    '--rows',
    type=int,
    default=0,
    choices=range(9),
    metavar='EIGHTHS',
    help='of all rows, that packed batches take; 0: nothing is packed',
  )
  options = parser.parse_args(arguments)

  def work():
    name, _, shape = options.topology.partition(':')
    one_of('--topology', name, CHIPS)
    require(
      bool(re.fullmatch(r'\d+(x\d+){1,2}', shape)),
      f'--topology {options.topology!r} is not of the form v5e:4x4',
    )
    config = command.load_recipe(options.config, options.set).config
    check(config, options.topology, CHIPS[name], options.rows)

  return command.run(work)


def check(config: Config, topology: str, chip: Chip, rows: int) -> None:
  """Prints one JSON line for each program.

  Raises:
    ConfigError: no compiler, too few devices, or a program that does not fit.
  """
  import jax

  from gft_jax.models import presets
  from gft_jax.parallel.mesh import check_divisible, check_rows
  from gft_jax.training import objectives

  require(
    not config.model.lora.rank,
    f'model.lora.rank={config.model.lora.rank}: adapters are not compiled here',
  )
  # What is compiled for devices that are not here cannot be read back.
  jax.config.update('jax_enable_compilation_cache', False)
  mesh = make_mesh(config, topology)
  architecture = shape_of(config)
  parameters = presets.parameter_count(architecture)
  chips = mesh.devices.size
  print(
    f'{parameters:,} parameters on {chips} chips, {chips * chip.cores} cores, of'
    f' {topology}',
    file=sys.stderr,
  )
  too_large = []
  # By its text: stages of one method have the same program.
  known: dict[str, Any] = {}
  for stage in config.stages:
    settings = for_stage(config, stage)
    objective = objectives.choose(stage.objective, settings.group)
    optimizer, size = settings.optimizer, settings.data.batch_size
    parts = optimizer.mini_batches * optimizer.micro_batches
    check_divisible(size, settings.mesh, parts=parts)
    check_rows('data.batch_size', size, settings.mesh)
    for name, traced, work in programs(
      settings, objective, stage, architecture, mesh, rows
    ):
      line = {'stage': stage.name, 'program': name, 'topology': topology}
      lowered = traced.lower()
      text = lowered.as_text()
      try:
        compiled = known[text] if text in known else lowered.compile()
      except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
          raise
        # The compiler's own words: how much it needs, and of how much.
        sentence = str(error).split(': ', 1)[-1].splitlines()[0]
        too_large.append(f'{name} of stage {stage.name}: {sentence}')
        continue
      known[text] = compiled
      found = describe(compiled, work, chips, chip)
      if not found['fits']:
        too_large.append(
          f'{name} of stage {stage.name}: {found["hbm_gb"]} GB with what stays of'
          ' the train state'
        )
      print(json.dumps(line | {'parameters': parameters} | found), flush=True)
  require(
    not too_large,
    f'{topology}: {"; ".join(too_large)}; try more chips, or more of mesh.fsdp,'
    ' mesh.tensor, optimizer.micro_batches, or model.remat=full',
  )


def make_mesh(config: Config, topology: str) -> Any:
  """The mesh of the config on devices that are not here."""
  from jax.experimental import topologies

  from gft_jax.parallel.mesh import mesh_of

  # No chip is looked for, and none is claimed.
  for variable, value in {
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
  }.items():
    os.environ.setdefault(variable, value)
  try:
    # Without its name the compiler counts the two cores of a v4 apart.
    name = {'chip_config_name': 'megacore'} if topology[:3] == 'v4:' else {}
    devices = topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **name
    ).devices
  except Exception as error:
    raise ConfigError(
      f'--topology {topology}: the TPU compiler gives none'
      f' ({str(error).splitlines()[0][:120]}); pip install "jax[tpu]"'
    ) from error
  mesh = config.mesh
  require(
    mesh.size == len(devices),
    f'mesh data={mesh.data} x fsdp={mesh.fsdp} x tensor={mesh.tensor} is not the'
    f' {len(devices)} devices of {topology}',
  )
  return mesh_of(mesh, devices)


def shape_of(config: Config) -> Any:
  from gft_jax.models import presets

  path = config.model.path
  if not path:
    return config.model.architecture
  one_of('model.path', path, presets.HUB_IDS)
  return presets.HUB_IDS[path]


def programs(settings: Config, objective, stage, architecture, mesh, rows):
  """(name, traced program, Work) of the training step and of the sampler."""
  import jax
  import jax.numpy as jnp

  from gft_jax import programs
  from gft_jax.models import presets
  from gft_jax.models.transformer import Transformer
  from gft_jax.parallel.mesh import rollout_mesh
  from gft_jax.training import train_step

  model = Transformer(
    architecture,
    settings.model.dtype,
    settings.model.param_dtype,
    settings.model.remat,
  )
  optimizer = programs.optimizer_of(settings.optimizer, stage.steps)

  def create(key):
    one = jnp.ones((1, 1), jnp.int32)
    params = model.init(key, one, one[0])['params']
    return train_step.create_state(model, params, optimizer)

  state = placed(jax.eval_shape(create, jax.random.key(0)), mesh)
  compiled = sum(x.size for x in jax.tree.leaves(state.params))
  size = presets.parameter_count(architecture)
  require(
    compiled == size, f'the model has {compiled:,} parameters, not {size:,}'
  )
  # The policy that the run began with stays, for the KL and for other stages.
  base = held_of(state.params)
  step, work = training_step(settings, objective, model, state, mesh, rows)
  yield 'update', step, work._replace(held=base)
  if settings.group.samples:
    layout = rollout_mesh(mesh, settings.mesh)
    params, held = state.params, base + held_of(state)
    if layout is mesh:
      held -= held_of(params)  # They are the sampler's own argument.
    else:
      copy = functools.partial(
        programs.rollout_copy, mesh=mesh, dtype=settings.model.dtype
      )
      params = placed(jax.eval_shape(copy, params), layout)
    yield 'sample', *rollout(settings, model, params, layout, held)


def training_step(settings: Config, objective, model, state, mesh, eighths):
  """(traced program, Work) of one training step.

  At full lengths, or packed in so many eighths of all rows.
  """
  import jax
  import jax.numpy as jnp

  from gft_jax import batch, programs
  from gft_jax.models import packing, presets
  from gft_jax.parallel import sharding
  from gft_jax.training import objectives
  from gft_jax.training.loss import StepSettings

  b, g = settings.data.batch_size, settings.group.size
  p, t = settings.data.max_prompt, settings.data.max_response
  rows = functools.partial(rows_of, mesh)
  groups = batch.GroupBatch(
    prompts=batch.Prompts(rows(b, p), rows(b), rows(b)),
    responses=batch.Responses(
      rows(b, g, t), rows(b, g), rows(b, g, t, dtype=jnp.float32)
    ),
    rewards=rows(b, g, dtype=jnp.float32),
    origin=rows(b, g),
    member_mask=rows(b, g, dtype=jnp.bool_),
  )
  if eighths:
    optimizer = settings.optimizer
    parts = optimizer.mini_batches * optimizer.micro_batches
    cells = sharding.prompt_shards(mesh) * parts
    size = cells * packing.share(eighths, b * g // cells), p + t
    listed = b, packing.share(eighths, g * t)
    groups = groups.replace(
      packing=batch.Packing(
        batch.Rows(rows(*size), rows(*size), rows(*size)),
        rows(*listed),
        rows(*listed),
      )
    )
  loss = objectives.resolve(settings.loss, objective)
  with jax.set_mesh(mesh), programs.precise(model.dtype):
    traced = programs.update.trace(
      state,
      groups,
      state.params if loss.kl_weight else None,
      None,
      model=model,
      settings=StepSettings.of(objective, settings),
    )
  size = presets.parameter_count(model.architecture)
  return traced, Work(6 * size * b * (p + g * t), roofline.flops(traced.jaxpr))


def rollout(settings: Config, model, params, mesh, held: float):
  """(traced program, Work) of one rollout whose answers are all full."""
  import jax
  import jax.numpy as jnp

  from gft_jax import batch, programs
  from gft_jax.models import presets
  from gft_jax.parallel import sharding
  from gft_jax.rollout import Sampling

  b, g = settings.data.batch_size, settings.group.samples
  p, t = settings.data.max_prompt, settings.data.max_response
  rows = functools.partial(rows_of, mesh)
  sampler, a = settings.sampler, model.architecture
  with jax.set_mesh(mesh), programs.precise(model.dtype):
    traced = programs.sample.trace(
      model,
      params,
      batch.Prompts(rows(b, p), rows(b), rows(b)),
      jax.eval_shape(lambda: jax.random.key(0)),
      group_size=g,
      max_tokens=t,
      sampling=Sampling(
        sampler.temperature,
        sampler.top_k,
        sampler.top_p,
        sampler.min_p,
        stop_ids=(0,),
      ),
    )
  # Each token reads the parameters, and of its group's keys and values the
  # prompt's once and half of its own.
  size = presets.parameter_count(a)
  width = jnp.dtype(settings.model.dtype).itemsize
  tokens = b // sharding.prompt_shards(mesh) * (p + g * t / 2)
  cache = 2 * a.layers * a.kv_heads * a.head_size * tokens
  traffic = t * width * (size + cache) / mesh.shape['tensor']
  flops = 2 * size * b * (p + g * t)
  return traced, Work(flops, flops, traffic, held, t)


def placed(tree: Any, mesh: Any) -> Any:
  """Shapes of parameters or of a train state, where they lie on the mesh."""
  import jax

  from gft_jax.parallel import sharding

  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    sharding.parameter_shardings(tree, mesh),
  )


def rows_of(mesh: Any, *shape: int, dtype: Any = 'int32') -> Any:
  """The shape of what has a row for each prompt."""
  import jax

  from gft_jax.parallel import sharding

  sharding = sharding.batch_sharding(mesh)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def held_of(tree: Any) -> float:
  """Bytes that each chip holds of placed shapes."""
  import jax

  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def describe(
  compiled: Any, work: Work, chips: int, chip: Chip
) -> dict[str, Any]:
  """What one program takes of one chip, and how long it should take.

  Seconds are those of a roofline: products at the peak, or all results through
  the memory, whichever takes longer; and then the collectives, as if nothing of
  them were hidden.
  """
  memory = compiled.memory_analysis()
  held = (
    work.held
    + memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  traffic = roofline.traffic(compiled.as_text(), work.ladder)
  peak = chips * chip.tflops * 1e12
  # An all-reduce is a reduce-scatter and an all-gather.
  sent = sum(
    size * (2 if kind == 'all-reduce' else 1)
    for kind, (_, size) in traffic.collectives.items()
  )
  seconds = {
    'compute': work.flops / peak,
    'memory': (work.traffic or traffic.memory) / chip.bandwidth_gb_s / 1e9,
    'collectives': sent / chip.ring_gb_s / 1e9,
  }
  predicted = (
    max(seconds['compute'], seconds['memory']) + seconds['collectives']
  )
  return {
    'hbm_gb': round(held / 2**30, 2),
    'hbm_of_chip_gb': chip.hbm_gb,
    'fits': held / 2**30 < chip.hbm_gb,
    'arguments_gb': round(memory.argument_size_in_bytes / 2**30, 2),
    'temporaries_gb': round(memory.temp_size_in_bytes / 2**30, 2),
    'model_tflops': round(work.model_flops / 1e12, 1),
    'tflops': round(work.flops / 1e12, 1),
    'collectives': {
      kind: {'count': count, 'gb': round(size / 1e9, 3)}
      for kind, (count, size) in traffic.collectives.items()
    },
    'seconds': {name: round(value, 3) for name, value in seconds.items()},
    'predicted_seconds': round(predicted, 3),
    'predicted_mfu': round(work.model_flops / peak / predicted, 3),
  }


if __name__ == '__main__':
  sys.exit(main())
