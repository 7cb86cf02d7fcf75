"""The settings of a run, read back."""

import dataclasses
import json

import pytest

from gft_jax.config import Config, ConfigError, Stage, to_dict
from gft_jax.report.run import read_run
from gft_jax.run.workdir import (
  check_stage,
  check_workdir,
  read_config,
  stage_config,
)


@pytest.fixture
def run(config, tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(to_dict(config)))
  return tmp_path


def test_settings_come_back_as_they_were(config, run):
  assert read_config(run) == read_config(str(run)) == config


READERS = (
  read_config,
  lambda folder: check_workdir(folder, Config()),
  lambda folder: stage_config(folder, 'gft'),
  read_run,
)


@pytest.mark.parametrize('read', READERS)
@pytest.mark.parametrize(
  'text', ['{', '[]', '{"sede": 1}', '{"stages": [1]}', '{"eval": {"ks": "a"}}']
)
def test_a_damaged_file_is_one_line(tmp_path, read, text):
  path = tmp_path / 'config.json'
  path.write_text(text)
  with pytest.raises(ConfigError) as error:
    read(tmp_path)
  assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('read', [read_config, read_run])
def test_a_folder_without_settings_is_no_run(tmp_path, read):
  with pytest.raises(ConfigError, match=r'no config\.json; not a run'):
    read(tmp_path)


def test_a_new_folder_is_no_mistake_for_a_run_that_begins(tmp_path, config):
  check_workdir(tmp_path / 'new', config)


def test_a_stage_has_its_own_settings(config, run):
  overrides = (
    *('sampler.stop_strings=9', 'reward.function=exact', 'data.max_prompt=9'),
    'loss.tau=0.25',
  )
  *before, stage = config.stages
  stage = dataclasses.replace(stage, overrides=overrides)
  config = dataclasses.replace(config, stages=(*before, stage))
  (run / 'config.json').write_text(json.dumps(to_dict(config)))
  found = stage_config(run, stage.name)
  assert found.sampler.stop_strings == ('9',)
  assert (found.reward.function, found.loss.tau) == ('exact', 0.25)
  assert found.data == config.data


@pytest.mark.parametrize(
  'name, best, message',
  [
    (None, False, '--workdir needs --stage, one of base, gft, grpo'),
    ('gtf', False, "'gtf' is not one of base, gft, grpo; did you mean gft?"),
    ('gft', True, 'stage gft kept no best step'),
  ],
)
def test_a_stage_that_is_not_there_is_named(config, name, best, message):
  with pytest.raises(ConfigError, match=message.replace('?', r'\?')):
    check_stage(config, name, best)
  assert isinstance(check_stage(config, 'gft'), Stage)
