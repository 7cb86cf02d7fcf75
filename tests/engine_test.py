"""The engine in two layouts, and in two real processes with their own rows."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import chex
import numpy as np
import pytest

from gft_jax import programs
from gft_jax import programs as engine_lib
from gft_jax.batch import SELF, Prompts, Responses
from gft_jax.config import (
  Architecture,
  Config,
  MeshConfig,
  ModelConfig,
  override,
)
from gft_jax.engine import Engine, RewardScorer
from gft_jax.models import packing
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh
from gft_jax.policy import load_policy
from gft_jax.rollout import groups
from gft_jax.training import objectives

ROOT = pathlib.Path(__file__).parents[1]

# argv: which process of how many. Four prompts in all; prints their answers.
PROGRAM = """
import json, sys
import numpy as np
from gft_jax.batch import Prompts
from gft_jax.config import Config, MeshConfig
from gft_jax.engine import Engine, RewardScorer
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh
from gft_jax.parallel.processes import initialize_processes
from gft_jax.policy import load_policy

index, count = map(int, sys.argv[1:])
initialize_processes()
config = Config(mesh=MeshConfig(data=count))
policy = load_policy(config)
engine = Engine(config, policy, make_mesh(config.mesh), {}, {}, None)
rows = np.split(np.arange(4, dtype=np.int32), count)[index]
prompts = Prompts(
  np.repeat(rows[:, None] + 3, 5, axis=1), np.full(len(rows), 5), rows
)
key = engine.key('sample', 1)
responses = engine.sample(policy.params, prompts, key, config.sampler, 4, 6)
print(json.dumps(responses.tokens.tolist()))
"""


def start(index, count, port):
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  if count > 1:
    environment |= {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': str(count),
      'JAX_PROCESS_ID': str(index),
    }
  return subprocess.Popen(
    [sys.executable, '-c', PROGRAM, str(index), str(count)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
  )


@pytest.mark.slow
def test_two_processes_sample_what_one_does():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  outputs = [
    [child.communicate(timeout=120)[0] for child in children]
    for children in (
      [start(0, 1, port)],
      [start(0, 2, port), start(1, 2, port)],
    )
  ]
  (whole,), halves = (
    [json.loads(text.splitlines()[-1]) for text in texts] for texts in outputs
  )
  assert [len(half) for half in halves] == [2, 2]
  assert halves[0] + halves[1] == whole


MESHES = [
  MeshConfig(fsdp=8, rollout_tensor=2),
  *(
    pytest.param(mesh, marks=pytest.mark.slow)
    for mesh in (
      MeshConfig(fsdp=8, rollout_tensor=4),
      MeshConfig(data=8),
      MeshConfig(fsdp=8),
      MeshConfig(data=2, fsdp=2, tensor=2),
    )
  ),
]


@pytest.mark.parametrize(
  'mesh',
  MESHES,
  ids=lambda m: f'{m.data}-{m.fsdp}-{m.tensor}-{m.rollout_tensor}',
)
def test_rollouts_are_equal_on_any_mesh_and_layout(mesh, monkeypatch):
  """Sums over a width round differently, so log-probabilities: to 1e-5."""
  shape = Architecture(width=32, heads=4, kv_heads=2, head_size=8, mlp_width=64)
  prompts = Prompts(
    np.arange(40, dtype=np.int32).reshape(8, 5) % 11 + 3,
    np.full(8, 5, np.int32),
    np.arange(8, dtype=np.int32),
  )
  sampled, copies, copy = [], [], programs.rollout_copy

  def copied(*arguments, **keywords):
    copies.append(copy(*arguments, **keywords))
    return copies[-1]

  monkeypatch.setattr(programs, 'rollout_copy', copied)
  for layout in (MeshConfig(), mesh):
    config = Config(model=ModelConfig(architecture=shape), mesh=layout)
    policy = load_policy(config)
    devices = make_mesh(layout)
    engine = Engine(config, policy, devices, {}, {}, None)
    params = engine.copy(policy.params)
    key = engine.key('sample', 1)
    sampled.append(engine.sample(params, prompts, key, config.sampler, 4, 12))
  alone, spread = sampled
  np.testing.assert_array_equal(alone.tokens, spread.tokens)
  np.testing.assert_allclose(
    alone.behavior_logp, spread.behavior_logp, atol=1e-5
  )
  # What the sampler gets is what the devices have laid out anew.
  assert len(copies) == bool(mesh.rollout_tensor)
  if not copies:
    return
  rollout_tensor = mesh.rollout_tensor
  kernel = copies[0]['blocks']['up']['kernel']
  assert kernel.addressable_shards[0].data.shape[-1] == 64 // rollout_tensor
  half = copy(params, mesh=engine._rollout_mesh, dtype='bfloat16')
  kernel = half['blocks']['up']['kernel']
  assert kernel.addressable_shards[0].data.shape[-1] == 64 // rollout_tensor
  assert kernel.dtype == 'bfloat16'
  assert half['final_norm']['scale'].dtype == 'float32'


def test_an_update_is_packed_for_the_devices_and_parts_that_run_it(monkeypatch):
  config = override(
    Config(mesh=MeshConfig(data=2)), 'optimizer.micro_batches=2'
  )
  policy = load_policy(config)
  engine = Engine(config, policy, make_mesh(config.mesh), {}, {}, None)
  batch = groups.build(
    Prompts(np.ones((8, 5), np.int32), np.full(8, 5), np.arange(8)),
    Responses(
      np.ones((8, 2, 30), np.int32),
      np.arange(16).reshape(8, 2) % 5,
      np.zeros((8, 2, 30), np.float32),
    ),
    np.full((8, 2), SELF),
    np.zeros((8, 2)),
  )
  seen = []
  monkeypatch.setattr(
    engine_lib, 'update', lambda *args, **_: seen.append(args)
  )
  engine.update(None, batch, None, objectives.OBJECTIVES['gft'], config)
  expected = packing.pack(batch, shards=2, parts=2).packing
  assert expected.rows is not None
  chex.assert_trees_all_equal(seen[0][1].packing, expected)


@pytest.mark.parametrize(
  ('count', 'devices', 'calls'),
  [
    (1, 1, [1]),
    (20, 1, [10, 10]),
    (16, 1, [16]),
    (3, 4, [4]),
    (65, 4, [36, 36]),
  ],
)
def test_a_reward_model_reads_as_many_rows_as_are_asked(
  monkeypatch, count, devices, calls
):
  """The score of a row is the last token of its prompt, of two answers."""
  seen = []

  def scores(model, params, batch):
    seen.append(len(batch.prompts.length))
    last = batch.prompts.length[:, None, None] - 1
    tokens = np.take_along_axis(batch.prompts.tokens[:, None], last, axis=-1)
    return np.repeat(tokens[..., 0], 2, axis=1).astype(np.float32)

  monkeypatch.setattr(programs, 'response_scores', scores)
  monkeypatch.setattr(sharding, 'to_global', lambda mesh, tree: tree)
  monkeypatch.setattr(sharding, 'to_local', lambda mesh, x: x)
  config = Config(mesh=MeshConfig(data=devices))
  policy = load_policy(config)
  mesh = make_mesh(config.mesh)
  scorer = RewardScorer(policy.model, {}, policy.tokenizer, mesh)
  prompts = [f'{n % 9}+{n % 7}' for n in range(count)]
  found = scorer.scores(prompts, [['1', '22']] * count)
  assert seen == calls and found.shape == (count, 2)
  ends = [
    policy.tokenizer(p, add_special_tokens=False).input_ids[-1] for p in prompts
  ]
  assert found[:, 0].tolist() == ends
