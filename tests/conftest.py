"""Settings that must stand before jax is imported."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Eight devices: on one, chex's pmap variant and every mesh test would be
# skipped silently. The rest compiles a tiny gradient in a quarter of the time.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
    '--xla_cpu_use_fusion_emitters=false',
  ]
)

import pathlib

import jax
import pytest
import shape_checks

shape_checks.install()

from gft_jax.config import (
  Architecture,
  CheckpointConfig,
  Config,
  DataConfig,
  EvalConfig,
  GroupConfig,
  LogConfig,
  ModelConfig,
  OptimizerConfig,
  RewardConfig,
  SamplerConfig,
  Stage,
)

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """The folder of real data beside the checkout, or a skip with the reason."""
  path = pathlib.Path(__file__).parents[2] / 'shared'
  if not (path / 'data').is_dir():
    pytest.skip(f'no real data at {path / "data"}')
  return path


DEMONSTRATIONS = ('group.teachers=0', 'group.samples=0')
OWN_SAMPLES = ('group.experts=0', 'group.teachers=0', 'group.samples=4')


@pytest.fixture(scope='session')
def config() -> Config:
  """Three stages of a decoder that trains in seconds."""
  return Config(
    model=ModelConfig(
      architecture=Architecture(
        width=16, heads=2, kv_heads=1, head_size=8, mlp_width=32, layers=2
      )
    ),
    data=DataConfig(
      batch_size=4,
      max_prompt=16,
      max_response=28,
      max_dropped=0.5,
      rows=64,
    ),
    group=GroupConfig(experts=1, teachers=1, samples=2),
    sampler=SamplerConfig(temperature=1.0),
    reward=RewardConfig(function='arithmetic'),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    checkpoint=CheckpointConfig(every=2),
    eval=EvalConfig(
      splits=('test',),
      prompts=6,
      samples=2,
      ks=(1, 2),
      max_response=20,
      kl_prompts=5,
      batch_size=4,
      base='base',
    ),
    log=LogConfig(progress=False, tensorboard=False),
    stages=(
      Stage('base', '', 'sft', 3, (*DEMONSTRATIONS, 'data.split=pretrain')),
      Stage('gft', 'base', 'gft', 3),
      Stage('grpo', 'gft', 'grpo', 2, OWN_SAMPLES),
    ),
  )


@pytest.fixture(scope='session')
def whole(config, tmp_path_factory):
  """A finished run and what train() returned."""
  from gft_jax.loop import train  # seconds that other tests need not pay

  workdir = tmp_path_factory.mktemp('whole')
  return workdir, train(config, workdir)


@pytest.fixture(scope='module', autouse=True)
def fresh_caches():
  """Some hundred compiled programs would stay in memory, 5 GB of them."""
  yield
  jax.clear_caches()
