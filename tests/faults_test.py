"""What goes wrong around a run: signals, full disks, a second run."""

import dataclasses
import json
import logging
import multiprocessing
import os
import pathlib
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import chex
import pytest
from small_runs import hearing_signals

from gft_jax.config import (
  Config,
  ConfigError,
  RewardConfig,
  Stage,
  override,
  to_dict,
)
from gft_jax.engine import Engine
from gft_jax.evaluation import held_out
from gft_jax.loop import train
from gft_jax.policy import load_policy, restore_stage
from gft_jax.rewards.grader import Grader
from gft_jax.run import checkpoint
from gft_jax.run.signals import HINT, Preempted
from gft_jax.run.workdir import claim

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def one_stage(config):
  return dataclasses.replace(
    config,
    reward=RewardConfig('reward_functions:terminated'),
    eval=dataclasses.replace(config.eval, base='', splits=(), kl_prompts=0),
    checkpoint=dataclasses.replace(config.checkpoint, every=100),
    stages=(Stage('gft', '', 'gft', 4),),
  )


def records(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith(OWN)}
    for line in lines
  ]


OWN = ('time/', 'memory/')


def test_sigterm_saves_after_the_step_and_the_same_command_continues(
  one_stage, tmp_path, monkeypatch
):
  file = tmp_path / 'terminate'
  monkeypatch.setenv('GFT_JAX_TEST_TERMINATE', str(file))
  train(one_stage, tmp_path / 'whole')

  file.touch()
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(Preempted, match='gft is saved at step 1;') as error:
    train(one_stage, tmp_path / 'cut')
  assert '\n' not in str(error.value)
  assert signal.getsignal(signal.SIGTERM) is before
  saved = checkpoint.newest(tmp_path / 'cut/checkpoints/gft')
  assert saved.name == '00000001'

  train(one_stage, tmp_path / 'cut')
  assert records(tmp_path / 'cut') == records(tmp_path / 'whole')


def test_sigterm_in_an_evaluation_saves_before_its_next_batch(
  config, tmp_path, monkeypatch
):
  """In that of step 2, in the one that makes up for it, and in the last."""
  stages = tuple(
    dataclasses.replace(stage, start='') for stage in config.stages[1:2]
  )
  config = dataclasses.replace(config, stages=stages)
  for assignment in (
    *('eval.every=2', 'eval.base=', 'eval.kl_prompts=0', 'log.report=false'),
    *('checkpoint.every=100', 'checkpoint.best=eval/test/pass@2'),
  ):
    config = override(config, assignment)
  whole = train(config, tmp_path / 'whole')

  accuracy, batches, stops = held_out.accuracy, [], iter([True] * 2)

  def terminated(*args, **kwargs):
    if next(stops, False):
      os.kill(os.getpid(), signal.SIGTERM)
    return accuracy(*args, **kwargs)

  monkeypatch.setattr(held_out, 'accuracy', terminated)
  logprobs = Engine.token_logprobs
  monkeypatch.setattr(
    Engine,
    'token_logprobs',
    lambda *args, **kwargs: batches.append(1) or logprobs(*args, **kwargs),
  )
  folder = tmp_path / 'cut/checkpoints/gft'
  with pytest.raises(Preempted, match='gft is saved at step 2;'):
    train(config, tmp_path / 'cut')
  assert checkpoint.newest(folder).name == '00000002'
  with pytest.raises(Preempted, match='gft at step 2 is still to be done'):
    train(config, tmp_path / 'cut')
  assert not batches
  stops = iter([False, True])  # The evaluation of step 2 at last.
  with pytest.raises(Preempted, match='gft is saved at step 3;'):
    train(config, tmp_path / 'cut')
  assert train(config, tmp_path / 'cut') == whole
  evaluated = len(batches)
  assert train(config, tmp_path / 'cut') == whole
  assert len(batches) == evaluated > 0  # It is not done again.
  assert records(tmp_path / 'cut') == records(tmp_path / 'whole')
  best = checkpoint.newest(folder, best=True).name
  other = tmp_path / 'whole/checkpoints/gft'
  assert best == checkpoint.newest(other, best=True).name


def test_a_workdir_begun_meanwhile_under_another_config_is_refused(
  config, tmp_path
):
  with claim(tmp_path, config):
    pass
  with pytest.raises(ConfigError, match='begun under another config; changed'):
    with claim(tmp_path, Config()):
      pass


def test_a_workdir_has_one_run_at_a_time(config, tmp_path):
  with claim(tmp_path, config):
    with pytest.raises(ConfigError, match='is in use by another run'):
      with claim(tmp_path, config):
        pass
  with claim(tmp_path, config):  # It was let go.
    pass


def test_a_lock_ends_with_its_process(tmp_path):
  script = (
    'import os, sys\n'
    'from gft_jax import config\n'
    'from gft_jax.run.workdir import claim\n'
    'import pathlib\n'
    'with claim(pathlib.Path(sys.argv[1]), config.Config()):\n'
    '  os._exit(0)\n'
  )
  subprocess.run([sys.executable, '-c', script, str(tmp_path)], check=True)
  with claim(tmp_path, Config()):
    pass


def test_a_full_disk_is_said_and_the_last_checkpoint_stands(tmp_path):
  """A limit on the size of files stands for the disk."""
  import numpy as np

  state = {'params': {'w': np.arange(6.0)}, 'step': np.array(1)}
  checkpoint.save(tmp_path, 1, state, {}, keep=1)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  large = {'params': {'w': np.random.rand(2**20)}, 'step': np.array(2)}
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
  try:
    with pytest.raises(checkpoint.SaveError, match='00000002 could not') as e:
      checkpoint.save(tmp_path, 2, large, {}, keep=1)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert '\n' not in str(e.value)
  assert checkpoint.newest(tmp_path).name == '00000001'
  assert not (tmp_path / '00000002').exists()
  checkpoint.save(tmp_path, 2, large, {}, keep=1)
  assert checkpoint.newest(tmp_path).name == '00000002'


RECIPE = """
import json, pathlib
from gft_jax.config import Config, from_dict
text = pathlib.Path(__file__).with_suffix('.json').read_text()
get_config = lambda: from_dict(Config, json.loads(text))
"""


def command(config, folder, workdir):
  """The command line of a real run, whose recipe is written to a folder."""
  file = folder / 'recipe.py'
  file.write_text(RECIPE)
  file.with_suffix('.json').write_text(json.dumps(to_dict(config)))
  script = str(ROOT / 'experiments' / 'train.py')
  arguments = ['--config', str(file), '--workdir', str(workdir)]
  return [sys.executable, script, *arguments]


def environment():
  paths = f'{ROOT}:{ROOT}/tests'
  return {k: v for k, v in os.environ.items()} | {'PYTHONPATH': paths}


@pytest.mark.slow
def test_a_run_whose_disk_is_full_says_so_and_goes_on_elsewhere(
  one_stage, tmp_path
):
  if subprocess.run(['unshare', '-rm', 'true']).returncode:
    pytest.skip('no mount namespaces here, hence no small disk')
  config = one_stage
  for assignment in (
    *('checkpoint.every=1', 'checkpoint.keep=9', 'log.report=false'),
    'model.architecture.mlp_width=2048',  # a checkpoint of 2 MB
  ):
    config = override(config, assignment)
  disk = tmp_path / 'disk'
  disk.mkdir()
  run = shlex.join(command(config, tmp_path, disk / 'run'))
  script = (
    f'mount -t tmpfs -o size=6m tmpfs {disk} && {run};'
    f' code=$?; cp -r {disk}/run {tmp_path}/rest; exit $code'
  )
  full = subprocess.run(
    ['unshare', '-rm', 'sh', '-c', script],
    env=environment(),
    capture_output=True,
    text=True,
  )
  assert full.returncode == 1, full.stderr
  said = [x for x in full.stderr.splitlines() if x.startswith('stopped: ')]
  assert len(said) == 1 and 'could not be written' in said[0]
  assert 'No space left on device' in said[0]
  saved = checkpoint.newest(tmp_path / 'rest/checkpoints/gft')
  assert saved is not None and 1 <= int(saved.name) < 4

  train(config, tmp_path / 'rest')
  train(config, tmp_path / 'whole')
  assert records(tmp_path / 'rest') == records(tmp_path / 'whole')


@pytest.mark.slow
def test_ctrl_c_saves_after_the_step_and_the_same_command_continues(
  one_stage, tmp_path
):
  workdir = tmp_path / 'run'
  long = dataclasses.replace(
    one_stage, stages=(Stage('gft', '', 'gft', 10**6),)
  )
  arguments = command(long, tmp_path, workdir)
  run = subprocess.Popen(
    hearing_signals(arguments),
    stderr=subprocess.PIPE,
    text=True,
    env=environment(),
  )
  try:
    deadline = time.monotonic() + 120
    metrics = workdir / 'metrics.jsonl'
    # The first step is compiled after the config is written.
    while not (workdir / 'config.json').exists() or not metrics.exists():
      assert run.poll() is None and time.monotonic() < deadline
      time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=120)
  finally:
    run.kill()
  assert run.returncode == 128 + signal.SIGINT
  said = [x for x in said.splitlines() if not x.startswith('WARNING:')]
  assert said[0] == HINT and len(said) == 2
  assert said[1].startswith('stopped: Ctrl-C: stage gft is saved at step 1;')
  assert checkpoint.newest(workdir / 'checkpoints/gft').name == '00000001'


@pytest.mark.slow
def test_a_second_run_is_refused_and_sigterm_ends_the_first_in_seconds(
  one_stage, tmp_path
):
  workdir = tmp_path / 'run'
  long = dataclasses.replace(
    one_stage, stages=(Stage('gft', '', 'gft', 10**6),)
  )
  arguments, known = command(long, tmp_path, workdir), {'env': environment()}
  first = subprocess.Popen(
    arguments, stderr=subprocess.PIPE, text=True, **known
  )
  try:
    deadline = time.monotonic() + 120
    metrics = workdir / 'metrics.jsonl'
    while not (metrics.exists() and '"step": 3,' in metrics.read_text()):
      assert first.poll() is None and time.monotonic() < deadline
      time.sleep(0.05)
    second = subprocess.run(
      arguments, stderr=subprocess.PIPE, text=True, **known
    )
    assert second.returncode == 2
    assert second.stderr.count('\n') == 1
    assert 'is in use by another run' in second.stderr
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, said = first.communicate(timeout=60)
  finally:
    first.kill()
  assert time.monotonic() - began < 10  # measured: 0.2
  assert first.returncode == 128 + signal.SIGTERM
  (line,) = [x for x in said.splitlines() if x.startswith('stopped: ')]
  step = int(line.partition('saved at step ')[2].partition(';')[0])
  assert checkpoint.newest(workdir / 'checkpoints/gft').name == f'{step:08d}'


def flip_a_bit(folder):
  path = max(folder.rglob('d/*'), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  return f'{path.relative_to(folder)} is damaged'


def cut_short(folder):
  path = max(folder.rglob('d/*'), key=lambda p: p.stat().st_size)
  path.write_bytes(path.read_bytes()[:-1])
  return f'{path.relative_to(folder)} is damaged'


def lose_the_manifest(folder):
  (folder / checkpoint.MANIFEST).unlink()
  return f'no {checkpoint.MANIFEST}; the save did not finish'


def lose_the_commit_file(folder):
  path = folder / 'params' / 'commit_success.txt'  # Orbax's.
  path.unlink()
  return f'{path.relative_to(folder)} is missing'


@pytest.mark.parametrize(
  'damage',
  [
    flip_a_bit,
    *(
      pytest.param(damage, marks=pytest.mark.slow)
      for damage in (cut_short, lose_the_manifest, lose_the_commit_file)
    ),
  ],
)
def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(
  config, whole, tmp_path, caplog, damage
):
  """Of three stages the second is hurt: the third is done again, too."""
  workdir = tmp_path / 'run'
  shutil.copytree(whole[0], workdir)
  fault = damage(workdir / 'checkpoints/gft/00000003')
  with caplog.at_level(logging.WARNING):
    results = train(config, workdir)
  assert f'gft/00000003 is passed over: {fault}' in caplog.text
  assert 'gft goes on from step 2, so grpo begins anew' in caplog.text
  assert results == whole[1]
  assert records(workdir) == records(whole[0])
  policy = load_policy(config)
  for stage in ('base', 'gft', 'grpo'):
    chex.assert_trees_all_equal(
      restore_stage(policy, workdir, stage),
      restore_stage(policy, whole[0], stage),
    )


@pytest.mark.slow
def test_grader_workers_killed_in_the_middle_change_no_reward(
  one_stage, tmp_path, monkeypatch
):
  reward = RewardConfig('reward_functions:slow', workers=2)
  config = dataclasses.replace(one_stage, reward=reward)
  train(config, tmp_path / 'whole')

  score, draw, killed = Grader.score, random.Random(6), []

  def kill_one():
    while not (workers := multiprocessing.active_children()):
      time.sleep(0.001)
    worker = draw.choice(workers)
    worker.kill()
    killed.append(worker.pid)

  def score_and_kill(*arguments, **keywords):
    timer = threading.Timer(draw.uniform(0, 0.01), kill_one)
    timer.start()
    scores = score(*arguments, **keywords)
    timer.join()
    return scores

  monkeypatch.setattr(Grader, 'score', score_and_kill)
  train(config, tmp_path / 'killed')
  assert len(set(killed)) == 4
  assert records(tmp_path / 'killed') == records(tmp_path / 'whole')
