"""What goes wrong around a run: signals, full disks, a second run."""

import dataclasses
import json
import resource
import signal
import subprocess
import sys

import pytest

from gft_jax import checkpoint, train
from gft_jax.config import ConfigError, RewardConfig, Stage


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
  train.train(one_stage, tmp_path / 'whole')

  file.touch()
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(train.Preempted, match='gft is saved at step 1;') as error:
    train.train(one_stage, tmp_path / 'cut')
  assert '\n' not in str(error.value)
  assert signal.getsignal(signal.SIGTERM) is before
  saved = checkpoint.newest(tmp_path / 'cut/checkpoints/gft')
  assert saved.name == '00000001'

  train.train(one_stage, tmp_path / 'cut')
  assert records(tmp_path / 'cut') == records(tmp_path / 'whole')


def test_a_workdir_has_one_run_at_a_time(config, tmp_path):
  with train.claim(tmp_path, config):
    with pytest.raises(ConfigError, match='is in use by another run'):
      with train.claim(tmp_path, config):
        pass
  with train.claim(tmp_path, config):  # It was let go.
    pass


def test_a_lock_ends_with_its_process(config, tmp_path):
  script = (
    'import os, sys\n'
    'from gft_jax import config, train\n'
    'import pathlib\n'
    'with train.claim(pathlib.Path(sys.argv[1]), config.Config()):\n'
    '  os._exit(0)\n'
  )
  subprocess.run([sys.executable, '-c', script, str(tmp_path)], check=True)
  with train.claim(tmp_path, config):
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
