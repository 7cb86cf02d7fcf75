"""Stages of a run, loaded again and written for others."""

import jax
import numpy as np
import pytest

from gft_jax import huggingface
from gft_jax.config import ConfigError, override
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
