"""Real processes, really killed: in the quickstart, and in every phase."""

import collections
import dataclasses
import json
import logging
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import marked_run
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from gft_jax.config import RewardConfig, Stage, override, to_dict
from gft_jax.run import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
# The quickstart's own tree of stages, with fewer steps.
SHORT = [
  'stages.base.steps=30',
  'checkpoint.every=4',
  *[
    f'stages.{name}.steps=6'
    for name in ('sft', 'gft', 'grpo', 'sft_grpo', 'sft_gft', 'sft_gft_grpo')
  ],
  'eval.prompts=32',
  'eval.kl_prompts=32',
  'eval.batch_size=32',
  'eval.splits=test',
]


def start(workdir):
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return subprocess.Popen(
    [
      sys.executable,
      'experiments/train.py',
      '--config',
      'experiments/configs/quickstart.py',
      '--workdir',
      str(workdir),
      '--set',
      *SHORT,
    ],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=(workdir.parent / f'{workdir.name}.log').open('a'),
  )


def records(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def comparable(record):
  """Without wall-clock and memory; JSON keeps every bit of a float."""
  return {
    k: v for k, v in record.items() if not k.startswith(('time/', 'memory/'))
  }


def kill_at(workdir, stage, step):
  """kill -9 as soon as the metrics show that the step is reached."""
  process = start(workdir)
  metrics = workdir / 'metrics.jsonl'
  mark = f'{{"stage": "{stage}", "step": {step}, '
  deadline = time.monotonic() + 600
  while not (metrics.exists() and mark in metrics.read_text()):
    assert process.poll() is None, 'it ended before it could be killed'
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()


@pytest.mark.slow
def test_killed_and_started_again_equals_the_uninterrupted_run(tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert start(whole).wait() == 0
  # Once in pre-training, once in a step after a checkpoint of a GFT stage.
  kill_at(killed, 'base', 17)
  assert records(killed)[-1]['step'] >= 17
  kill_at(killed, 'gft', 5)
  assert start(killed).wait() == 0

  expected = [comparable(record) for record in records(whole)]
  found = [comparable(record) for record in records(killed)]
  assert [(r['stage'], r['step']) for r in found] == [
    (r['stage'], r['step']) for r in expected
  ]
  for a, b in zip(found, expected):
    assert a == b, (a['stage'], a['step'])


KILLS, MORE, SEED, STEPS = 20, 10, 6, 64


@pytest.fixture
def marked(config, tmp_path):
  """Starts a GFT run of one stage that marks its phases, by its workdir."""
  stage = Stage('gft', '', 'gft', STEPS, ('group.teachers=0',))
  # A millisecond an answer, so that grading is long enough to be hit.
  reward = RewardConfig('reward_functions:slow')
  config = dataclasses.replace(config, reward=reward, stages=(stage,))
  for assignment in (
    'data.batch_size=16',
    'checkpoint.every=4',
    'eval.base=',
    'eval.every=2',
    'eval.kl_prompts=0',
    'log.report=false',
  ):
    config = override(config, assignment)
  settings = tmp_path / 'config.json'
  settings.write_text(json.dumps(to_dict(config)))
  environment = os.environ | {
    'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
    # A start reads its programs; without optimisation they compile in seconds.
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'programs'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
  }

  started = []

  def begin(workdir):
    mark = workdir.with_suffix('.mark')
    mark.write_text(f'0 {marked_run.STARTING}')
    process = subprocess.Popen(
      [sys.executable, marked_run.__file__, settings, workdir, mark],
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield begin
  for process in started:
    process.kill()
    process.wait()


def kill_in(process, mark, step, phase, delay):
  """kill -9 so long after the first such phase at or after a step has begun.

  Returns where the process was when it died.
  """
  deadline = time.monotonic() + 600
  while True:
    at, name = marked_run.read(mark)
    if name == phase and at >= step:
      break
    assert process.poll() is None, f'it ended before {phase} in step {step}'
    assert time.monotonic() < deadline
    time.sleep(0.0005)
  time.sleep(delay)
  process.kill()
  assert process.wait() == -signal.SIGKILL
  return marked_run.read(mark)


def contents(folder):
  """The bytes of every array of a checkpoint, and its position."""
  position = json.loads((folder / 'position.json').read_text())
  # A record has other digits of its seconds, and another length.
  del position['spent']['seconds'], position['metrics_bytes']
  arrays = {
    part.name: jax.tree.map(lambda x: np.asarray(x).tobytes(), ocp.load(part))
    for part in folder.iterdir()
    if part.is_dir()
  }
  assert sum(map(len, jax.tree.leaves(arrays))) > 10_000
  return position, arrays


@pytest.mark.slow
def test_killed_twenty_times_in_every_phase_ends_bit_for_bit(marked, tmp_path):
  """`--log-cli-level=info` prints the moments."""
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  process = marked(whole)
  seconds = json.loads(process.communicate()[0])
  assert process.returncode == 0

  draw = random.Random(SEED)
  steps = sorted(draw.randint(1, STEPS - 24) for _ in range(KILLS))
  steps += [steps[-1]] * MORE
  hits, missed = collections.Counter(), collections.Counter()
  for number, step in enumerate(steps, 1):
    if number > KILLS and all(hits[p] >= 2 for p in marked_run.PHASES):
      break
    # A phase may be over before its moment has come: that counts for another,
    # and the next moment in it comes sooner.
    phase = min(marked_run.PHASES, key=lambda p: (hits[p], draw.random()))
    delay = draw.uniform(0, seconds[phase] / 2 ** missed[phase])
    process = marked(killed)
    at, hit = kill_in(process, killed.with_suffix('.mark'), step, phase, delay)
    hits[hit] += 1
    missed[phase] = 0 if hit == phase else missed[phase] + 1
    saved = checkpoint.newest(killed / 'checkpoints' / 'gft')
    logging.info(
      f'| {number} | {phase}, {1000 * delay:.0f} ms | step {at}, {hit} |'
      f' {saved.name if saved else "none"} |'
    )
  assert all(hits[phase] >= 2 for phase in marked_run.PHASES), hits
  assert marked(killed).wait() == 0

  assert list(map(comparable, records(killed))) == list(
    map(comparable, records(whole))
  )
  saved = [sorted((w / 'checkpoints/gft').iterdir()) for w in (killed, whole)]
  for found, expected in zip(*saved, strict=True):
    assert found.name == expected.name
    assert contents(found) == contents(expected)
