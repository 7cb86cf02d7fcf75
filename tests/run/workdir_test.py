"""The settings of a run, read back."""

import dataclasses
import json
import pathlib

import pytest
from small_runs import demonstrations

from gft_jax.config import Config, ConfigError, Stage, overridden, to_dict
from gft_jax.report.run import read_run
from gft_jax.run.workdir import (
  check_data,
  check_stage,
  check_unchanged,
  check_workdir,
  local_folder,
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


@pytest.mark.parametrize('name', ['gft[tau=0.7]', 'a*', 'a?', 'a\\b', ']'])
def test_a_path_that_is_a_pattern_is_refused(tmp_path, name):
  """Orbax saves under it and can never restore."""
  with pytest.raises(ConfigError, match='could not be read again') as error:
    local_folder(tmp_path / name / 'run')
  assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['gs://bucket/run', 's3://b', 'gs:/bucket'])
def test_a_bucket_is_refused(name):
  for workdir in (name, pathlib.Path(name)):
    with pytest.raises(ConfigError, match='is not a local folder'):
      local_folder(workdir)


@pytest.mark.parametrize('name', ['plain', 'a b', 'tau=0.7', 'ä', 'a:b', '{a}'])
def test_any_other_folder_is_kept(tmp_path, name):
  assert local_folder(str(tmp_path / name)) == tmp_path / name


def test_the_home_directory_may_be_abbreviated(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert local_folder('~/run') == tmp_path / 'run'


@pytest.mark.parametrize('name', ['a/b', '', 'a[b]', '..', '*', 'a\\b', '../x'])
def test_a_stage_that_cannot_name_its_folder_is_refused(name):
  with pytest.raises(ConfigError, match='name a folder of checkpoints'):
    Stage(name)
  assert Stage('tau 0.7').name == 'tau 0.7'


@pytest.mark.parametrize(
  'stages, assignments, message',
  [
    ([('a', '', 1), ('b', 'a', 2)], [], r'stages.a.steps: 2 -> 1'),
    ([('a', '', 3), ('b', 'a', 2)], [], r'stages.a.steps: 2 -> 3'),
    ([('a', '', 2)], [], 'changed: stages: '),
    ([('b', '', 2), ('a', '', 2)], [], 'changed: stages: '),
    (
      [('a', '', 2), ('b', 'a', 3)],
      ['optimizer.schedule=cosine'],
      r'stages.b.steps: 2 -> 3',
    ),
    ([('a', '', 2), ('b', 'a', 3)], ['loss.tau=0.1'], 'loss.tau: 0.7 -> 0.1'),
  ],
)
def test_what_was_done_may_not_change(
  config, tmp_path, stages, assignments, message
):
  begun = demonstrations(config, ('a', '', 2), ('b', 'a', 2))
  if 'loss.tau=0.1' not in assignments:
    begun = overridden(begun, assignments)
  (tmp_path / 'config.json').write_text(json.dumps(to_dict(begun)))
  wanted = overridden(demonstrations(config, *stages), assignments)
  with pytest.raises(ConfigError, match=f'under another config.*{message}'):
    check_workdir(tmp_path, wanted)


def test_a_run_that_is_extended_may_read_more_but_nothing_else(tmp_path):
  check_data(tmp_path, [('a', '1')])
  check_data(tmp_path, [('a', '1'), ('a', '2'), ('b', '3')])
  kept = {'a': ['1', '2'], 'b': ['3']}
  assert json.loads((tmp_path / 'data.json').read_text()) == kept
  for changed in ([('a', '1'), ('b', '3')], [('a', '4'), ('b', '3')]):
    with pytest.raises(ConfigError, match='other data; changed: a;'):
      check_data(tmp_path, changed)
  assert json.loads((tmp_path / 'data.json').read_text()) == kept


@pytest.mark.parametrize('name', ['../runs/a', 'b/../../runs/a', '//tmp/a'])
def test_a_path_that_tensorstore_refuses_is_resolved(
  tmp_path, monkeypatch, name
):
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  found = local_folder(name)
  assert '..' not in found.parts and not str(found).startswith('//')
  assert found == pathlib.Path(name).resolve()


@pytest.mark.parametrize(
  ('name', 'message'),
  [('', 'names no folder'), ('file', 'is a file'), ('s3a+x://b', 'local fold')],
)
def test_what_can_be_no_workdir_is_refused(
  tmp_path, monkeypatch, name, message
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').touch()
  with pytest.raises(ConfigError, match=message):
    local_folder(name)


def test_a_reader_compares_and_writes_nothing(tmp_path):
  check_unchanged(tmp_path, [('a', '1')])
  assert not list(tmp_path.iterdir())
  check_data(tmp_path, [('a', '1'), ('b', '2')])
  before = (tmp_path / 'data.json').read_text()
  check_unchanged(tmp_path, [('a', '1'), ('c', '3')])
  with pytest.raises(ConfigError, match='other data; changed: b;'):
    check_unchanged(tmp_path, [('b', '3')])
  assert (tmp_path / 'data.json').read_text() == before
