"""Compiles a recipe for a real TPU slice, on a machine without one.

  pip install 'jax[tpu]'
  python experiments/pods/compile_check.py --topology v5e:4x4 \\
    --config experiments/configs/paper/gft_qwen2_5_math_1_5b.py

The training step and the sampler of every stage, at full lengths, through the
TPU compiler itself (libtpu, jax.experimental.topologies). Prints per program:
HBM of a chip, what is held and what there is; floating point operations of the
model, and the seconds that they take at the chip's peak; collectives by kind
with the bytes of their results, those inside a loop counted once. Nothing is
downloaded: the shape of a hub id is that of models.presets. Exit code 2: it
does not fit.
"""

import collections
import json
import math
import os
import re
import sys
from typing import Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))

import command

from gft_jax.config import Config, ConfigError, for_stage, one_of, require


class Chip(NamedTuple):
  """One chip of a slice (cloud.google.com/tpu/docs, system architecture)."""

  hbm_gb: float
  tflops: float  # bfloat16
  bandwidth_gb_s: float
  devices: int  # JAX devices, as the compiler counts them


CHIPS = {
  'v4': Chip(32, 275, 1228, 1),
  'v5e': Chip(16, 197, 819, 1),
  'v5p': Chip(95, 459, 2765, 1),
  'v6e': Chip(32, 918, 1640, 1),
}
BYTES = {
  'pred': 1,
  's8': 1,
  'u8': 1,
  'bf16': 2,
  'f16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
}
COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  command.add_config(parser)
  parser.add_argument(
    '--topology', required=True, help='v5e:4x4, v5p:2x2x4, v6e:16x16, v4:2x2x4'
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
    check(config, options.topology, CHIPS[name])

  return command.run(work)


def check(config: Config, topology: str, chip: Chip) -> None:
  """Prints one JSON line for each program.

  Raises:
    ConfigError: no compiler, too few devices, or a program that does not fit.
  """
  import jax

  from gft_jax import objectives
  from gft_jax.models import presets

  # What is compiled for devices that are not here cannot be read back.
  jax.config.update('jax_enable_compilation_cache', False)
  mesh = make_mesh(config, topology)
  architecture = shape_of(config)
  parameters = presets.parameter_count(architecture)
  chips = mesh.devices.size
  print(
    f'{parameters:,} parameters on {chips} chips of {topology}', file=sys.stderr
  )
  too_large = []
  for stage in config.stages:
    settings = for_stage(config, stage)
    objective = objectives.choose(stage.objective, settings.group)
    for name, lowered, flops in programs(
      settings, objective, stage, architecture, mesh
    ):
      line = {'stage': stage.name, 'program': name, 'topology': topology}
      try:
        found = describe(lowered.compile(), flops, chips, chip)
      except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
          raise
        # The compiler's own words: how much it needs, and of how much.
        sentence = str(error).split(': ', 1)[-1].splitlines()[0]
        too_large.append(f'{name} of stage {stage.name}: {sentence}')
        continue
      print(json.dumps(line | {'parameters': parameters} | found), flush=True)
  require(
    not too_large,
    f'{topology}: {"; ".join(too_large)}; try more chips, or more of mesh.fsdp,'
    ' mesh.tensor, optimizer.micro_batches, or model.remat=full',
  )


def make_mesh(config: Config, topology: str) -> Any:
  """The mesh of the config on devices that are not here."""
  import numpy as np
  from jax.experimental import topologies
  from jax.sharding import AxisType, Mesh

  try:
    devices = topologies.get_topology_desc(
      platform='tpu', topology_name=topology
    ).devices
  except Exception as error:
    raise ConfigError(
      f'--topology {topology}: the TPU compiler gives none'
      f' ({str(error).splitlines()[0][:120]}); pip install "jax[tpu]"'
    ) from error
  axes = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
  require(
    math.prod(axes) == len(devices),
    f'mesh data={axes[0]} x fsdp={axes[1]} x tensor={axes[2]} is not the'
    f' {len(devices)} devices of {topology}',
  )
  return Mesh(
    np.array(devices).reshape(axes),
    ('data', 'fsdp', 'tensor'),
    axis_types=(AxisType.Auto,) * 3,
  )


def shape_of(config: Config) -> Any:
  from gft_jax.models import presets

  path = config.model.path
  if not path:
    return config.model.architecture
  one_of('model.path', path, presets.HUB_IDS)
  return presets.HUB_IDS[path]


def programs(settings: Config, objective, stage, architecture, mesh):
  """(name, lowered program, model FLOPs) of the step and of the sampler."""
  import functools

  import jax
  import jax.numpy as jnp

  from gft_jax import batch, engine, objectives, parallel, train_step
  from gft_jax.models import presets
  from gft_jax.models.transformer import Transformer

  model = Transformer(
    architecture,
    settings.model.dtype,
    settings.model.param_dtype,
    settings.model.remat,
  )
  one = jnp.ones((1, 1), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), one, one[0])['params']

  def placed(tree):
    shardings = parallel.parameter_shardings(tree, mesh)
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      tree,
      shardings,
    )

  def rows(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(
      shape, dtype, sharding=parallel.batch_sharding(mesh)
    )

  b, g = settings.data.batch_size, settings.group.size
  p, t = settings.data.max_prompt, settings.data.max_response
  params = placed(shapes)
  create = functools.partial(
    train_step.create_state,
    model,
    optimizer=engine.optimizer_of(settings.optimizer, stage.steps),
  )
  prompts = batch.Prompts(rows(b, p), rows(b), rows(b))
  groups = batch.GroupBatch(
    prompts=prompts,
    responses=batch.Responses(
      rows(b, g, t), rows(b, g), rows(b, g, t, dtype=jnp.float32)
    ),
    rewards=rows(b, g, dtype=jnp.float32),
    origin=rows(b, g),
    member_mask=rows(b, g, dtype=jnp.bool_),
  )
  loss = objectives.resolve(settings.loss, objective)
  options = {
    'temperature': settings.sampler.temperature,
    'mini_batches': settings.optimizer.mini_batches,
    'micro_batches': settings.optimizer.micro_batches,
  }
  state = placed(jax.eval_shape(create, shapes))
  with jax.set_mesh(mesh):
    step = engine.update.lower(
      state,
      groups,
      params if loss.kl_weight else None,
      None,
      model=model,
      objective=objective,
      settings=loss,
      options=tuple(options.items()),
    )
  size = presets.parameter_count(architecture)
  # Forward and backward of a parameter cost 6 operations a token; attention of
  # two causal triangles is left out.
  yield 'update', step, 6 * size * b * (p + g * t)
  samples = settings.group.samples
  if samples:
    sampler = settings.sampler
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
      rollout = engine.sample.lower(
        model,
        params,
        prompts,
        key,
        group_size=samples,
        max_tokens=t,
        temperature=sampler.temperature,
        top_k=sampler.top_k,
        top_p=sampler.top_p,
        min_p=sampler.min_p,
        stop_ids=(0,),
        stop_sequences=(),
      )
    yield 'sample', rollout, 2 * size * b * (p + samples * t)


def describe(compiled, flops: float, chips: int, chip: Chip) -> dict[str, Any]:
  """What one program takes of one chip, and what it cannot be faster than."""
  memory = compiled.memory_analysis()
  held = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  seconds = flops / chips / (chip.tflops * 1e12)
  return {
    'hbm_gb': round(held / 2**30, 2),
    'hbm_of_chip_gb': chip.hbm_gb,
    'arguments_gb': round(memory.argument_size_in_bytes / 2**30, 2),
    'temporaries_gb': round(memory.temp_size_in_bytes / 2**30, 2),
    'model_tflops': round(flops / 1e12, 1),
    'seconds_at_peak': round(seconds, 3),
    'collectives': collectives(compiled.as_text()),
  }


def collectives(text: str) -> dict[str, dict[str, float]]:
  """Kind -> how many stand in the program and the bytes of their results."""
  found: dict[str, list[int]] = collections.defaultdict(list)
  pattern = rf'= (\(?[^=]*?) ({"|".join(COLLECTIVES)})(?:-start)?\('
  for result, kind in re.findall(pattern, text):
    found[kind].append(
      sum(
        BYTES.get(dtype, 4) * math.prod(map(int, filter(None, dims.split(','))))
        for dtype, dims in re.findall(r'(\w+)\[([\d,]*)\]', result)
      )
    )
  return {
    kind: {'count': len(sizes), 'mb': round(sum(sizes) / 2**20, 1)}
    for kind, sizes in sorted(found.items())
  }


if __name__ == '__main__':
  sys.exit(main())
