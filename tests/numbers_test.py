"""A refactoring leaves every number where it was.

golden/run_bf59033.json holds the metrics of a short run of commit bf59033, and
golden/run_bf59033.tar.gz its workdir as SIGTERM left it after two of the four
steps of its second stage.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

from gft_jax import train
from gft_jax.config import (
  Architecture,
  CheckpointConfig,
  Config,
  ConfigError,
  DataConfig,
  EvalConfig,
  GroupConfig,
  LogConfig,
  ModelConfig,
  OptimizerConfig,
  RewardConfig,
  Stage,
)
from gft_jax.run.writers import read_metrics

GOLDEN = pathlib.Path(__file__).parent / 'golden'
# What evaluations measure besides; rewards are 0 or 1.
SINCE = {'eval/test/threshold', 'eval/test/mean_reward'} | {
  f'eval/test/mean_reward_{end}' for end in ('low', 'high')
}
NUMBERS = json.loads((GOLDEN / 'run_bf59033.json').read_text())


@pytest.fixture
def short_run():
  return Config(
    model=ModelConfig(
      architecture=Architecture(
        width=16, heads=2, kv_heads=1, head_size=8, mlp_width=32, layers=1
      )
    ),
    data=DataConfig(
      batch_size=4, max_prompt=16, max_response=28, max_dropped=0.5, rows=64
    ),
    group=GroupConfig(experts=1, teachers=1, samples=2),
    reward=RewardConfig(function='arithmetic'),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    checkpoint=CheckpointConfig(every=2, keep=1),
    eval=EvalConfig(
      splits=('test',),
      prompts=4,
      samples=2,
      ks=(1, 2),
      max_response=20,
      kl_prompts=4,
      batch_size=4,
      base='base',
    ),
    log=LogConfig(progress=False, tensorboard=False, report=False),
    stages=(
      Stage('base', '', 'sft', 2, ('group.teachers=0', 'group.samples=0')),
      Stage('gft', 'base', 'gft', 4),
    ),
  )


def test_a_short_run_has_the_numbers_that_it_had(short_run, tmp_path):
  train(short_run, tmp_path)
  check_numbers(tmp_path)


def test_a_run_of_an_earlier_version_goes_on(short_run, tmp_path):
  with tarfile.open(GOLDEN / 'run_bf59033.tar.gz') as archive:
    archive.extractall(tmp_path, filter='data')
  train(short_run, tmp_path)
  check_numbers(tmp_path)


def test_a_run_of_a_later_version_is_refused_in_one_line(short_run, tmp_path):
  with tarfile.open(GOLDEN / 'run_bf59033.tar.gz') as archive:
    archive.extractall(tmp_path, filter='data')
  from gft_jax.run import checkpoint

  folder = checkpoint.newest(tmp_path / 'checkpoints/gft')
  position = json.loads((folder / 'position.json').read_text())
  checkpoint.amend(folder.parent, int(folder.name), position | {'version': 9})
  with pytest.raises(ConfigError, match=r'version 9, .* up to 2') as error:
    train(short_run, tmp_path)
  assert '\n' not in str(error.value)


def check_numbers(workdir):
  """To 1e-4, since bits differ between CPUs."""
  records = read_metrics(workdir)
  assert len(records) == len(NUMBERS)
  for found, wanted in zip(records, NUMBERS):
    measured = {k for k in found if not k.startswith(('time/', 'memory/'))}
    assert measured - SINCE == set(wanted)
    for name, value in wanted.items():
      if isinstance(value, str):
        assert found[name] == value
      else:
        np.testing.assert_allclose(
          found[name], value, rtol=1e-4, atol=1e-6, err_msg=name
        )
