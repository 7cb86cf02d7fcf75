"""What a run refuses before it writes anything."""

import dataclasses
import json

import pytest
from small_runs import alone

from gft_jax import plan
from gft_jax.config import ConfigError, Stage, override, profiled_steps
from gft_jax.loop import train
from gft_jax.training import objectives


def length_mean(view, settings):
  """It couples the tokens of a response."""
  length = view.mask.sum(axis=-1, keepdims=True)
  return (objectives.Term(-view.logp / length, view.mask),)


def test_an_objective_that_couples_tokens_is_refused(
  config, tmp_path, monkeypatch
):
  row = objectives.Objective(length_mean, (objectives.GIVEN,))
  monkeypatch.setitem(objectives.OBJECTIVES, 'length_mean', row)
  given = ('group.samples=0', 'group.teachers=0')
  message = r'^objective length_mean: the values .*plan_test:length_mean$'
  with pytest.raises(ConfigError, match=message):
    train(alone(config, 'length_mean', *given), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_dynamic_sampling_needs_rewards(config, tmp_path):
  given = ('group.samples=0', 'group.teachers=0', 'group.refills=1')
  with pytest.raises(ConfigError, match=r'refills=1 .* sft asks for none'):
    train(alone(config, 'sft', *given), tmp_path / 'run')


@pytest.mark.parametrize(
  ('assignment', 'message'),
  [
    ('data.path=nowhere.jsonl', 'nowhere.jsonl'),
    ('model.path=/nowhere', '/nowhere'),
    ('data.batch_size=6', r'data.batch_size=6 .* multiple of 4'),
    ('mesh.data=64', 'needs 64 devices'),
    ('eval.splits=tset', 'tset'),
    ('eval.base=sft', "eval.base='sft' is not a stage"),
    ('stages.gft.objective=gtf', 'did you mean gft'),
    ('stages.gft.overrides=seed=1', 'seed belongs to the whole run'),
    ('stages.gft.overrides=eval.base=sft', 'eval.base belongs to the whole'),
    (
      'stages.gft.overrides=data.template_args=a=1',
      'data.template_args belongs to the whole',
    ),
    ('stages.gft.overrides=data.system=x', 'data.system belongs to the whole'),
    ('data.system=x', "data.system='x' is for a chat template, but"),
    ('stages.gft.overrides=stages.gft.steps=5', 'stages belongs to the whole'),
    ('stages.gft.overrides=data.eval_path=x', 'data.eval_path belongs to'),
    (
      'stages.gft.overrides=data.batch_size=400000',
      'data.batch_size=400000 exceeds the',
    ),
    (
      'sampler.temperature=0',
      'temperature=0 gives objective grpo of stage grpo no probabilities',
    ),
    ('eval.max_response=4000', 'max_positions=2048'),
    ('reward.function=math.nope:f', 'math.nope'),
    ('reward.function=brought_rewards:unit', "takes 'unit', .* of arithmetic"),
    ('eval.reward=brought_rewards:method', "takes 'level', .* of arithmetic"),
    (
      'stages.gft.overrides=reward.function=length+brought_rewards:verl',
      "takes 'data_source'",
    ),
    ('log.profile=gft:4..9', 'names no step; base has 3, gft has 3, grpo has'),
  ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
  config, tmp_path, assignment, message
):
  config = override(config, 'optimizer.micro_batches=4')
  workdir = tmp_path / 'run'
  with pytest.raises(ConfigError, match=message) as caught:
    train(override(config, assignment), workdir)
  assert '\n' not in str(caught.value)
  assert not workdir.exists()


@pytest.mark.parametrize(
  ('assignments', 'message'),
  [
    (['checkpoint.best=eval/test/accuracy'], r'one of eval/test/avg@2, '),
    (['checkpoint.best=eval/test/pass@1'], r'compares .* eval.every=0 leaves'),
    (
      ['mesh.data=4', 'eval.batch_size=6'],
      r'eval.batch_size=6 .* of the 4 dev',
    ),
  ],
)
def test_impossible_evaluations_are_refused(
  config, tmp_path, assignments, message
):
  for assignment in assignments:
    config = override(config, assignment)
  with pytest.raises(ConfigError, match=message):
    train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('profile', 'named'),
  [('', True), ('3..4', True), ('4..9', False), ('gft:3..3', True)],
)
def test_a_profile_is_looked_up_once_a_stage(
  config, monkeypatch, profile, named
):
  """Not once a step: the stage of a budget has 2^30 of them."""
  asked = []
  monkeypatch.setattr(
    plan,
    'profiled_steps',
    lambda *given: asked.append(given) or profiled_steps(*given),
  )
  config = override(config, f'log.profile={profile}')
  if named:
    plan._check_profile(config)
  else:
    with pytest.raises(ConfigError, match='names no step'):
      plan._check_profile(config)
  assert len(asked) <= len(config.stages)


def test_rows_that_are_dropped_are_named_as_a_run_starts(
  config, tmp_path, caplog
):
  rows = [
    {'prompt': f'{i}+1:', 'answer': f'{i + 1}', 'expert': f'{i + 1}'}
    for i in range(8)
  ]
  rows[1]['expert'] = '1+' * 40
  rows[3]['prompt'] = None
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  given = ('group.samples=0', 'group.teachers=0')
  for assignment in (
    *(f'data.path={path}', f'data.eval_path={path}'),
    f'data.cache={tmp_path / "cache"}',
    *('data.batch_size=1', 'log.report=false'),
  ):
    config = override(config, assignment)
  stages = (Stage('a', '', 'sft', 1, given), Stage('b', 'a', 'sft', 1, given))
  config = override(override(config, 'eval.splits='), 'eval.base=')
  train(dataclasses.replace(config, stages=stages), tmp_path / 'run')
  said = [x for x in caplog.messages if 'dropped' in x]
  assert said == [
    f'{path}: dropped, prompt is missing, 1 row: 4',
    f'{path}: dropped, experts longer than data.max_response=28, 1 row: 2',
  ]


def test_a_recipe_of_the_embedded_task_asks_for_all_at_once(config, tmp_path):
  path = tmp_path / 'q.jsonl'
  path.write_text('{"frage": "1+1:", "loesung": "2"}\n')
  stage = Stage('base', '', 'gft', 1, ('data.split=pretrain',))
  config = dataclasses.replace(config, stages=(stage,))
  for assignment in (f'data.path={path}', 'reward.function=', 'eval.base='):
    config = override(config, assignment)
  with pytest.raises(ConfigError) as error:
    train(config, tmp_path / 'run')
  for part in (
    'reward.function is not set',
    'set data.columns=prompt=NAME,answer=NAME',
    'stages.base.data.split=train',
  ):
    assert part in str(error.value)
  assert '\n' not in str(error.value)
