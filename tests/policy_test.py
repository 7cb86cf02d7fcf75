"""Stages of a run, loaded again and written for others."""

import dataclasses

import jax
import numpy as np
import pytest
from small_runs import demonstrations

from gft_jax import huggingface
from gft_jax.config import ConfigError, Stage, overridden, override
from gft_jax.loop import train
from gft_jax.policy import (
  export_stage,
  key_of,
  load_policy,
  load_stage,
  restore_stage,
)


def same(one, other):
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return all(np.array_equal(a, b) for a, b in pairs)


def test_a_stage_is_loaded_with_its_settings_and_parameters(whole, config):
  workdir, _ = whole
  stage = load_stage(workdir, 'gft')
  params, step = restore_stage(load_policy(config), workdir, 'gft')
  assert stage.config == config
  assert stage.step == step == 3
  assert same(stage.params, params)
  assert not same(stage.params, stage.policy.params)


def test_an_exported_stage_has_its_parameters(whole, tmp_path):
  workdir, _ = whole
  assert export_stage(workdir, 'gft', tmp_path) == 3
  _, params, _ = huggingface.load(tmp_path)
  assert same(params, load_stage(workdir, 'gft').params)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda run, out: load_stage(run, 'gtf'), r'did you mean gft\?'),
    (lambda run, out: load_stage(out, 'gft'), 'not a run'),
    (lambda run, out: load_stage(run, 'gft', best=True), 'kept no best step'),
    (lambda run, out: export_stage(run, 'gtf', out), r'did you mean gft\?'),
    (
      lambda run, out: export_stage(run, 'gft', out, adapter=True),
      'the run has no adapters',
    ),
  ],
)
def test_a_stage_that_cannot_be_loaded_is_refused(
  whole, tmp_path, call, message
):
  with pytest.raises(ConfigError, match=message) as error:
    call(whole[0], tmp_path)
  assert '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_adapters_of_random_weights_are_refused(config, tmp_path):
  config = override(config, 'model.lora.rank=2')
  with pytest.raises(ConfigError, match='would freeze random weights'):
    train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_keys_differ_by_seed_stream_and_step():
  keys = [
    key_of(seed, stream, step)
    for seed in (0, 1)
    for stream in ('sample', 'evaluate')
    for step in (0, 1)
  ]
  data = {tuple(np.asarray(jax.random.key_data(key))) for key in keys}
  assert len(data) == len(keys)


def continued(config, path, *assignments):
  """One short stage that starts from `path`."""
  stage = Stage('more', '', 'sft', 1, ('group.teachers=0', 'group.samples=0'))
  config = dataclasses.replace(config, stages=(stage,))
  settings = (f'model.path={path}', 'eval.splits=', 'log.report=false')
  return overridden(config, [*settings, 'eval.base=', *assignments])


def test_a_model_may_be_a_stage_of_a_run(whole, config, tmp_path):
  workdir, _ = whole
  policy = load_policy(continued(config, f'{workdir}:gft'))
  assert same(policy.params, load_stage(workdir, 'gft').params)
  export_stage(workdir, 'gft', tmp_path / 'model')
  exported = load_policy(continued(config, tmp_path / 'model'))
  assert same(policy.params, exported.params)
  assert policy.model == exported.model
  assert policy.eos_ids == exported.eos_ids


def test_a_run_goes_on_from_a_run_and_is_exported(whole, config, tmp_path):
  workdir, _ = whole
  first = continued(config, f'{workdir}:base', 'model.param_dtype=bfloat16')
  leaves = jax.tree.leaves(load_policy(first).params)
  assert {leaf.dtype.name for leaf in leaves} == {'bfloat16'}
  second = continued(config, f'{workdir}:base', 'mesh.fsdp=2')
  train(second, tmp_path / 'second')
  third = continued(config, f'{tmp_path / "second"}:more')
  train(third, tmp_path / 'third')
  assert export_stage(tmp_path / 'third', 'more', tmp_path / 'out') == 1
  _, params, _ = huggingface.load(tmp_path / 'out')
  assert same(params, load_stage(tmp_path / 'third', 'more').params)


def test_adapters_of_a_run_are_merged_where_another_starts(
  whole, config, tmp_path
):
  workdir, _ = whole
  export_stage(workdir, 'base', tmp_path / 'model')
  adapted = continued(config, tmp_path / 'model', 'model.lora.rank=2')
  train(adapted, tmp_path / 'adapted')
  policy = load_policy(continued(config, f'{tmp_path / "adapted"}:more'))
  export_stage(tmp_path / 'adapted', 'more', tmp_path / 'merged')
  assert same(policy.params, huggingface.load(tmp_path / 'merged')[1])
  assert policy.frozen is None and not policy.model.lora.rank
  again = f'{tmp_path / "adapted"}:more'
  policy = load_policy(continued(config, again, 'model.lora.rank=3'))
  assert same(policy.frozen, huggingface.load(tmp_path / 'merged')[1])


@pytest.mark.parametrize(
  'ending, message',
  [
    ('', r'is a run, not a model.*stages: base, gft, grpo'),
    (':gtf', r"'gtf' is not one of base, gft, grpo; did you mean gft\?"),
    (':', 'needs --stage, one of base, gft, grpo'),
  ],
)
def test_a_run_without_a_stage_is_no_model(whole, config, ending, message):
  with pytest.raises(ConfigError, match=message) as error:
    load_policy(continued(config, f'{whole[0]}{ending}'))
  assert '\n' not in str(error.value)


def test_a_relative_model_is_found_from_another_folder(
  whole, config, tmp_path, monkeypatch
):
  """Also where run and model have moved together; else it may be named."""
  export_stage(whole[0], 'base', tmp_path / 'old/models/base')
  monkeypatch.chdir(tmp_path / 'old')
  train(continued(config, 'models/base'), 'runs/first')
  monkeypatch.chdir(tmp_path)
  assert export_stage(tmp_path / 'old/runs/first', 'more', 'a') == 1
  (tmp_path / 'old').rename(tmp_path / 'new')
  assert export_stage('new/runs/first', 'more', 'b') == 1
  (tmp_path / 'new/models/base').rename(tmp_path / 'elsewhere')
  with pytest.raises(ConfigError, match=r'models/base is .*model\.path='):
    export_stage('new/runs/first', 'more', 'c')
  named = [f'model.path={tmp_path / "elsewhere"}']
  assert export_stage('new/runs/first', 'more', 'c', assignments=named) == 1


def test_a_run_that_started_from_a_run_notices_that_it_went_on(
  config, tmp_path
):
  first = demonstrations(config, ('base', '', 1))
  train(first, tmp_path / 'first')
  second = continued(config, f'{tmp_path / "first"}:base')
  train(second, tmp_path / 'second')
  assert export_stage(tmp_path / 'second', 'more', tmp_path / 'a') == 1
  train(demonstrations(config, ('base', '', 2)), tmp_path / 'first')
  with pytest.raises(ConfigError, match=r'changed: model.path=.*first:base;'):
    export_stage(tmp_path / 'second', 'more', tmp_path / 'b')
  with pytest.raises(ConfigError, match=r'changed: model.path=.*first:base;'):
    train(override(second, 'stages.more.steps=2'), tmp_path / 'second')
