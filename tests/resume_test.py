"""A real process, really killed, in the middle of the quickstart."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

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
