"""The engine in two real processes: each has its own rows."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]

# argv: which process of how many. Four prompts in all; prints their answers.
PROGRAM = """
import json, sys
import numpy as np
from gft_jax import parallel, train
from gft_jax.batch import Prompts
from gft_jax.config import Config, MeshConfig
from gft_jax.engine import Engine

index, count = map(int, sys.argv[1:])
parallel.initialize_processes()
config = Config(mesh=MeshConfig(data=count))
policy = train.load_policy(config)
engine = Engine(config, policy, parallel.make_mesh(config.mesh), {}, None)
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
