"""What launches on pods, and the check that a recipe fits a TPU slice.

No cloud, no cluster and no TPU compiler is here.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from gft_jax.models import presets

EXPERIMENTS = pathlib.Path(__file__).parents[1] / 'experiments'
RECIPE = str(EXPERIMENTS / 'configs/paper/gft.py')


@pytest.fixture
def script(monkeypatch):
  monkeypatch.syspath_prepend(EXPERIMENTS)
  monkeypatch.syspath_prepend(EXPERIMENTS / 'pods')
  import compile_check

  yield compile_check
  for name in ('compile_check', 'roofline'):
    sys.modules.pop(name, None)


PROGRAM = """
HloModule jit_step, is_scheduled=true

%update.1 (p0: bf16[28,4], p1: bf16[1,4], p2: s32[]) -> bf16[28,4] {
  %p0 = bf16[28,4]{1,0} parameter(0)
  %p1 = bf16[1,4]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %d = bf16[28,4]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %a = f32[8]{0} all-reduce(f32[8]{0} %x), to_apply=%sum
  %v = f32[1000]{0:T(128)S(1)} add(%a, %a)
  %s = bf16[28,4]{1,0} fusion(%q, %r, %i), kind=kLoop, calls=%update.1
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %a)
}

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  %n = s32[] constant(28)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (w: f32[2]) -> f32[8] {
  %w = f32[2]{0} parameter(0)
  %g = (f32[2]{0}, f32[8]{0}) all-gather-start(f32[2]{0} %w), dimensions={0}
  %h = f32[8]{0} all-gather-done(%g)
  %l = (s32[], f32[8]{0}) while(%u), condition=%condition.1, body=%body.1
  ROOT %o = f32[8]{0} get-tuple-element(%l), index=1
}
"""


def test_traffic_counts_every_turn_of_a_loop(script):
  import roofline

  found = roofline.traffic(PROGRAM)
  assert found.collectives == {
    'all-gather': (1, 8 * 4),
    'all-reduce': (28, 28 * 8 * 4),
  }
  # Written and read: what was gathered; in each turn the sums and one row of
  # the array that is updated. S(1) is not the device's memory.
  assert found.memory == 2 * (8 * 4 + 28 * (8 * 4 + 4 * 2))


def test_loops_that_go_on_for_each_other_count_once(script):
  import roofline

  line = next(x for x in PROGRAM.splitlines() if 'while(' in x)
  twice = PROGRAM.replace(line, f'{line}\n{line}')
  assert roofline.traffic(twice).collectives['all-reduce'][0] == 56
  assert roofline.traffic(twice, ladder=28) == roofline.traffic(PROGRAM)
  assert roofline.traffic(twice, ladder=27) == roofline.traffic(twice)
  # The condition of the sampler also compares the rows that are left.
  rows = '  %m = s32[] constant(64)\n  ROOT %c = pred'
  crowded = twice.replace('  ROOT %c = pred', rows)
  assert roofline.traffic(crowded, ladder=28) == roofline.traffic(PROGRAM)


class Memory(NamedTuple):
  argument_size_in_bytes: int = 4 * 2**30
  output_size_in_bytes: int = 4 * 2**30
  alias_size_in_bytes: int = 3 * 2**30
  temp_size_in_bytes: int = 6 * 2**30
  generated_code_size_in_bytes: int = 2**29


class Compiled(NamedTuple):
  def memory_analysis(self):
    return Memory()

  def as_text(self):
    return PROGRAM


@pytest.mark.parametrize('held, fits', [(0, True), (4, True), (5, False)])
def test_what_a_program_takes_of_a_chip(script, held, fits):
  chip = script.CHIPS['v5e']
  assert chip.hbm_gb == 15.75
  work = script.Work(1e15, 2e15, held=held * 2**30)
  found = script.describe(Compiled(), work, 16, chip)
  assert found['hbm_gb'] == 11.5 + held
  assert found['fits'] is fits
  sent = 8 * 4 + 2 * 28 * 8 * 4  # an all-reduce sends what it reduces twice
  compute = 2e15 / (16 * chip.tflops * 1e12)
  assert found['seconds']['compute'] == pytest.approx(compute, abs=1e-3)
  predicted = compute + sent / chip.ring_gb_s / 1e9
  assert found['predicted_seconds'] == pytest.approx(predicted, abs=1e-3)
  assert found['predicted_mfu'] == pytest.approx(0.5, abs=1e-3)


def test_what_does_not_fit_is_one_line(script, monkeypatch, capsys):
  import jax

  from gft_jax.parallel.mesh import make_mesh

  compiled = []

  class Traced(NamedTuple):
    text: str

    def lower(self):
      return self

    def as_text(self):
      return self.text

    def compile(self):
      compiled.append(self.text)
      return Compiled()

  monkeypatch.setattr(
    script, 'make_mesh', lambda config, _: make_mesh(config.mesh)
  )
  monkeypatch.setattr(
    script,
    'programs',
    lambda settings, objective, stage, *_: [
      ('update', Traced(stage.objective), script.Work(1, 1, held=2**33))
    ],
  )
  cache = jax.config.jax_enable_compilation_cache
  small = ['mesh.fsdp=8']

  def check(topology, recipe=RECIPE):
    arguments = ['--config', recipe, '--topology', topology, '--set', *small]
    return script.main(arguments)

  try:
    assert check('v5e:2x4') == 2
    found = capsys.readouterr()
    assert check('v4:2x2x2') == 0
    told = capsys.readouterr()
    # Seven stages of three methods.
    compiled.clear()
    assert check('v4:2x2x2', RECIPE.replace('gft.py', 'pipelines.py')) == 0
  finally:
    jax.config.update('jax_enable_compilation_cache', cache)
  assert '"fits": false' in found.out
  error = found.err.splitlines()
  assert len(error) == 2
  size = '1,543,714,304 parameters on 8 chips'
  assert error[0] == f'{size}, 8 cores, of v5e:2x4'
  assert told.err == f'{size}, 16 cores, of v4:2x2x2\n'
  assert len(capsys.readouterr().out.splitlines()) == 7
  assert sorted(compiled) == ['gft', 'grpo', 'sft']
  assert 'update of stage gft: 19.5 GB' in error[1]
  assert 'try more chips' in error[1]


def test_flops_count_loops_shards_and_the_costliest_branch(script):
  import jax
  import jax.numpy as jnp
  import roofline
  from jax.sharding import PartitionSpec as P

  def step(w, x):
    y, _ = jax.lax.scan(lambda y, _: (y @ w, None), x, None, length=5)
    y = jax.lax.cond(y.sum() > 0, lambda y: y @ w @ w, lambda y: y, y)
    return jax.shard_map(
      lambda y: y @ y.T, in_specs=P('data'), out_specs=P('data')
    )(y)

  with jax.set_mesh(jax.make_mesh((8,), ('data',))):
    rows = jax.device_put(jnp.ones((16, 4)), P('data'))
    jaxpr = jax.jit(step).trace(jnp.ones((4, 4)), rows).jaxpr
  product = 2 * 16 * 4 * 4
  assert roofline.flops(jaxpr) == 5 * product + 2 * product + 8 * 2 * 2 * 4 * 2


def test_flops_of_a_kernel_are_those_of_all_steps_of_its_grid(script):
  import jax
  import roofline
  from jax.experimental import pallas as pl

  def product(x, y, out):
    out[...] = x[...] @ y[...]

  def step(x, y):
    return pl.pallas_call(
      product,
      grid=(3,),
      in_specs=[
        pl.BlockSpec((8, 4), lambda i: (i, 0)),
        pl.BlockSpec((4, 5), lambda i: (0, 0)),
      ],
      out_specs=pl.BlockSpec((8, 5), lambda i: (i, 0)),
      out_shape=jax.ShapeDtypeStruct((24, 5), x.dtype),
    )(x, y)

  shapes = (
    jax.ShapeDtypeStruct((2, *shape), 'float32') for shape in ((24, 4), (4, 5))
  )
  jaxpr = jax.jit(jax.vmap(step)).trace(*shapes).jaxpr
  assert roofline.flops(jaxpr) == 2 * 2 * 24 * 4 * 5


@pytest.mark.parametrize(
  'topology, words',
  [
    ('v9:4x4', 'is not one of v4, v5e, v5p, v6e'),
    ('v5e', "'v5e' is not of the form v5e:4x4"),
    ('v5e:sixteen', 'is not of the form v5e:4x4'),
  ],
)
def test_a_mistyped_topology_is_one_line(script, capsys, topology, words):
  assert script.main(['--config', RECIPE, '--topology', topology]) == 2
  error = capsys.readouterr().err
  assert words in error and error.count('\n') == 1


def test_the_shape_of_a_hub_id_is_known(script):
  import command

  config = command.load_recipe(RECIPE, []).config
  assert script.shape_of(config).width == 1536


TRAIN = 'experiments/train.py --config a.py --workdir runs/b'
PLACES = {
  'TPU': 'slice',
  'ZONE': 'zone',
  'NAME': 'run1',
  'IMAGE': 'image',
  'CLAIM': 'claim',
}


def launch(script, *arguments, **places):
  command = ['bash', f'experiments/pods/{script}', *arguments]
  return subprocess.run(
    command,
    cwd=EXPERIMENTS.parent,
    env=os.environ | places,
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(
  ('script', 'count', 'words'),
  [
    (
      'local.sh',
      ['2'],
      'JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 CUDA_VISIBLE_DEVICES=1 python',
    ),
    (
      'tpu_pod.sh',
      [],
      'gcloud compute tpus tpu-vm ssh slice --zone=zone --worker=all'
      ' --command=cd gft_jax && GFT_JAX_PROCESSES=auto .venv/bin/python',
    ),
    ('slurm.sh', [], 'srun --kill-on-bad-exit=0 env GFT_JAX_PROCESSES=auto'),
    ('gke.sh', ['4'], 'JAX_COORDINATOR_ADDRESS, value: "run1-0.run1:12355"'),
  ],
)
def test_a_dry_run_says_what_would_run(script, count, words):
  arguments = ['--dry-run', *count, '--config', 'a.py', '--workdir', 'runs/b']
  found = launch(script, *arguments, **PLACES)
  assert (found.returncode, found.stderr) == (0, '')
  assert words in found.stdout
  plain = re.sub(r'pods/\.\./|[",\[\]]', '', found.stdout)
  assert TRAIN in plain
  script = EXPERIMENTS / 'pods' / script
  assert subprocess.run(['bash', '-n', script]).returncode == 0


def test_the_job_of_kubernetes_gives_each_pod_its_number():
  yaml = pytest.importorskip('yaml')
  arguments = ['--dry-run', '4', '--config', 'a.py', '--workdir', '/runs/b']
  arguments += ['--set', r'data.instruction=put "it" in \boxed{}']
  text = launch('gke.sh', *arguments, **PLACES).stdout
  service, job = yaml.safe_load_all(text)
  assert service['spec']['clusterIP'] == 'None'
  assert job['spec']['completions'] == job['spec']['parallelism'] == 4
  pod = job['spec']['template']['spec']
  assert pod['subdomain'] == service['metadata']['name']
  (container,) = pod['containers']
  assert container['command'][2:] == arguments[2:]
  index = container['env'][2]['valueFrom']['fieldRef']['fieldPath']
  assert index.endswith("['batch.kubernetes.io/job-completion-index']")


@pytest.mark.parametrize('script', ['local.sh', 'gke.sh', 'tpu_pod.sh'])
def test_a_launch_without_its_numbers_is_one_line(script):
  found = launch(script, '--config', 'a.py')
  assert found.returncode and not found.stdout
  assert found.stderr.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  'path',
  sorted((EXPERIMENTS / 'configs/paper').glob('*.py')),
  ids=lambda p: p.stem,
)
def test_every_recipe_of_the_paper_traces_at_full_size(script, path):
  """Its training steps and samplers, with the shapes of the model and no array."""
  import command

  traces(script, command.load_recipe(str(path), []).config, path.stem)


@pytest.mark.slow
@pytest.mark.parametrize('model', sorted(presets.HUB_IDS))
def test_gft_traces_with_every_model_that_is_known(script, model):
  import command

  path = EXPERIMENTS / 'configs/paper/gft.py'
  setting = [f'model.path={model}']
  config = command.load_recipe(str(path), setting).config
  traces(script, config, 'gft', most=3.0)  # attention is most of a small one


def traces(script, config, name, most=2.0):
  from gft_jax.config import MeshConfig, for_stage
  from gft_jax.parallel.mesh import check_divisible, make_mesh
  from gft_jax.training import objectives

  trees = ('pipelines', 'thresholds', 'compositions')
  assert name in (*trees, config.stages[0].name)
  mesh = make_mesh(MeshConfig(fsdp=8))
  for stage in config.stages:
    settings = for_stage(config, stage)
    optimizer = settings.optimizer
    parts = optimizer.mini_batches * optimizer.micro_batches
    size = settings.data.batch_size
    check_divisible(size, settings.mesh, parts=parts)
    objective = objectives.choose(stage.objective, settings.group)
    work = {
      name: work
      for name, _, work in script.programs(
        settings, objective, stage, script.shape_of(config), mesh, None
      )
    }
    assert set(work) == {'update', *(['sample'] * bool(settings.group.samples))}
    # What is recomputed costs a third more, attention something; a table of
    # embeddings counts in the model and costs nothing.
    assert 1.2 < work['update'].flops / work['update'].model_flops < most


def test_the_page_says_what_the_check_printed():
  """Each row of a table against the lines of its command, stage by stage."""
  pods = EXPERIMENTS / 'pods'
  lines = (pods / 'compiled.jsonl').read_text().splitlines()
  printed = {}
  for line in map(json.loads, lines):
    stages = printed.setdefault(line['arguments'], {})
    stages.setdefault(line['stage'], {})[line['program']] = line
  rows = 0
  for row in (pods / 'README.md').read_text().splitlines():
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    if len(cells) < 6 or '.' not in cells[-4]:
      continue
    names = re.findall(r'`(\w+)\.py`', cells[0]) or ['gft']
    *_, memory, seconds, mfu, rollout, turn = cells
    topology, more = 'v6e:4x4', ''
    if len(cells) == 8:
      topology, more = cells[1].rpartition(': ')[0], cells[2].strip('`-')
    elif 'on v' in cells[0]:
      topology = cells[0].rpartition(' ')[2]
    for name in names:
      arguments = f'--topology {topology} --config experiments/configs/paper/'
      arguments += f'{name}.py' + f' --set {more}' * bool(more)
      # One that is named, or all: then they are as large as each other.
      stages = re.findall(r'`(\w+)`', cells[0]) or printed[arguments]
      for found in (printed[arguments][stage] for stage in stages):
        assert all(line['fits'] for line in found.values()), arguments
        said = [(memory.split(' ')[0], found['update']['hbm_gb'])]
        said += [(seconds, found['update']['predicted_seconds'])]
        said += [(mfu, found['update']['predicted_mfu'])]
        assert ('sample' in found) == (rollout != '-'), arguments
        if 'sample' in found:
          said += [(rollout, found['sample']['hbm_gb'])]
          said += [(turn, found['sample']['predicted_seconds'])]
        for text, value in said:
          error = abs(float(text) - value)
          digits = len(text.partition('.')[2])
          assert error <= 0.51 * 10**-digits, (arguments, text)
      rows += 1
  assert rows >= 40
