import dataclasses
import re

import pytest

from gft_jax.config import (
  Config,
  ConfigError,
  LossConfig,
  Stage,
  differences,
  elsewhere,
  fields_with_meaning,
  for_stage,
  from_dict,
  overridden,
  override,
  to_dict,
)

TREE = Config(
  stages=(
    Stage('sft', '', 'sft', 3, ('group.teachers=0', 'group.samples=0')),
    Stage('gft', 'sft', 'gft', 5),
  )
)


def test_none_leaves_a_setting_to_the_objective():
  changed = override(override(TREE, 'loss.dual_clip=10'), 'loss.dual_clip=none')
  assert changed == TREE


@pytest.mark.parametrize(
  ('assignment', 'value'),
  [
    ('loss.tau=0.2', 0.2),
    ('data.batch_size = 32', 32),
    ('model.path=a=b', 'a=b'),
    ('log.progress=false', False),
    ('eval.splits=test, ood_length', ('test', 'ood_length')),
    ('eval.splits=()', ()),
    ('eval.splits=["test", \'ood\']', ('test', 'ood')),
    ('sampler.stop_ids=1,2', (1, 2)),
    ('sampler.stop_strings=a b,c', ('a b', 'c')),
    (r"sampler.stop_strings='\n\n',' a, b'", ('\n\n', ' a, b')),
    ('loss.reduction=sequence_mean', 'sequence_mean'),
    ('loss.dual_clip=0', 0.0),
    ('loss.dual_clip=10', 10.0),
    ('model.architecture.width=48', 48),
    ('model.architecture.rope_scaling=8,1,4,8192', (8.0, 1.0, 4.0, 8192)),
    ('stages.gft.steps=9', 9),
    ('stages.sft.overrides=group.teachers=1', ('group.teachers=1',)),
  ],
)
def test_override_sets_one_field(assignment, value):
  changed = override(TREE, assignment)
  name = assignment.partition('=')[0].strip()
  node = changed
  for part in name.split('.'):
    if isinstance(node, tuple):
      node = next(stage for stage in node if stage.name == part)
    else:
      node = getattr(node, part)
  assert node == value
  (line,) = differences(TREE, changed)
  assert line.startswith(f'{name}: ')


@pytest.mark.parametrize(
  ('assignment', 'message'),
  [
    ('loss.tua=0.2', r"no setting 'tua'; did you mean tau\?"),
    ('los.tau=0.2', r"no setting 'los'; did you mean loss\?"),
    ('loss.tau=abc', r"loss.tau='abc' is not of type float"),
    ('loss.tau=1.5', r'loss.tau=1.5 is not in \[0, 1\]'),
    ('loss.chunk=1.5', r"loss.chunk='1.5' is not of type int"),
    ('loss=1', 'loss is a group of settings'),
    ('loss.tau.x=1', "'tau' is one setting, not a group"),
    ('optimizer.b1=2', r'optimizer.b1=2.0 is not in \[0, 1\)'),
    ('optimizer.b2=-0.1', r'optimizer.b2=-0.1 is not in'),
    ('seed=99999999999999999999', r'is not below 2\^31'),
    ('ppo_epochs=2', 'here it is optimizer.mini_batches'),
    ('zzz=1', r"no setting 'zzz'$"),
    ('eval.prompts=0', 'eval.prompts=0 must be positive'),
    ('eval.ks=0,4', r'eval.ks=\(0, 4\) has a k below 1'),
    ('eval.kl_prompts=-1', 'eval.kl_prompts=-1 must be finite and not neg'),
    ('data.rows=-5', 'data.rows=-5 must be finite and not negative'),
    ('optimizer.clip_norm=-1', 'optimizer.clip_norm=-1.0 must be finite'),
    ('optimizer.learning_rate=nan', 'optimizer.learning_rate=nan must be'),
    ('model.architecture.kv_heads=0', 'kv_heads=0 must be positive'),
    ('loss.tau', 'not of the form a.b=c'),
    ('log.progress=maybe', 'is not true or false'),
    ("sampler.stop_strings='a", r"'a is not a list of quoted strings"),
    ("sampler.stop_strings=''", r"'' is no text"),
    ('model.remat=ful', r'not one of none, dots, full; did you mean full\?'),
    ('model.lora.rank=-1', 'model.lora.rank=-1 is negative'),
    ('model.lora.alpha=0', 'model.lora.alpha=0.0 must be positive'),
    ('model.lora.targets=', 'model.lora.targets names no projection'),
    ('model.lora.targets=qeury', r'one of query, .* did you mean query\?'),
    ('model.lora.targets=q_proj', "model.lora.targets='q_proj' is not one of"),
    ('tau=0.2', r'did you mean loss.tau\?'),
    ('temperature=1', 'did you mean sampler.temperature or eval.temperature'),
    ('stages.gft=1', 'stages.gft is a group of settings'),
    ('stages.gft.loss.tau=2', r'stages.gft.overrides: loss.tau=2.0 is not in'),
    ('stages.gft.loss.tua=1', r"no setting 'tua'; did you mean tau\?"),
    ('stages.gtf.steps=1', r"no stage 'gtf'; .* did you mean gft\?"),
    ('model.architecture.heads=6', 'heads=6 is not a multiple of kv_heads=4'),
    ('eval.ks=1,8', r'eval.ks=\(1, 8\) has a k above eval.samples=4'),
    ('group.samples=-1', 'group.samples=-1'),
    ('model.architecture.rope_scaling=8,1', 'has 2 items, not 4'),
  ],
)
def test_override_says_in_one_line_what_is_wrong(assignment, message):
  with pytest.raises(ConfigError, match=message) as caught:
    override(TREE, assignment)
  assert '\n' not in str(caught.value)


def test_stage_overrides_apply_to_that_stage_only():
  sft, gft = (for_stage(TREE, stage) for stage in TREE.stages)
  assert (sft.group.size, gft.group.size) == (1, 8)


RATES = Config(
  stages=(
    Stage('sft', '', 'sft', 3, ('optimizer.learning_rate=1e-3', 'loss.tau=1')),
    Stage('gft', 'sft', 'gft', 5, ('loss.tau = 0.5', 'eval.samples=8')),
  )
)


def in_stages(config, name):
  group, field = name.split('.')
  return [
    getattr(getattr(for_stage(config, stage), group), field)
    for stage in config.stages
  ]


@pytest.mark.parametrize(
  ('assignments', 'name', 'values'),
  [
    ([], 'loss.tau', [1.0, 0.5]),
    (['loss.tau=0.3'], 'loss.tau', [0.3, 0.3]),
    (['optimizer.learning_rate=1e-5'], 'optimizer.learning_rate', [1e-5, 1e-5]),
    (['stages.gft.loss.tau=0.3'], 'loss.tau', [1.0, 0.3]),
    (['stages.gft.loss.tau=0.3', 'loss.tau=0.1'], 'loss.tau', [0.1, 0.1]),
    (['loss.tau=0.1', 'stages.gft.loss.tau=0.3'], 'loss.tau', [0.1, 0.3]),
    (['loss.tau=0.3'], 'eval.samples', [4, 8]),
  ],
)
def test_the_last_who_speaks_of_a_setting_counts(assignments, name, values):
  assert in_stages(overridden(RATES, assignments), name) == values


def test_what_the_command_line_says_is_what_config_json_says():
  config = override(RATES, 'loss.tau=0.3')
  assert config.loss.tau == 0.3
  assert [s.overrides for s in config.stages] == [
    ('optimizer.learning_rate=1e-3',),
    ('eval.samples=8',),
  ]


@pytest.mark.parametrize(
  ('name', 'ours'),
  [
    ('lr', 'optimizer.learning_rate'),
    ('beta', 'loss.kl_weight'),
    ('epochs', 'stages.NAME.steps'),
    ('num_generations', 'group.samples'),
    ('max_completion_length', 'data.max_response'),
    ('actor_rollout_ref.actor.optim.lr', 'optimizer.learning_rate'),
    ('trainer.save_freq', 'checkpoint.every'),
    ('loss.beta', 'loss.kl_weight'),
    ('stages.gft.lr', 'optimizer.learning_rate'),
    ('system_prompt', 'data.system'),
  ],
)
def test_a_name_of_another_trainer_leads_to_ours(name, ours):
  with pytest.raises(ConfigError, match=f'no setting .*here it is {ours}'):
    override(TREE, f'{name}=1')


def test_what_others_call_a_setting_is_a_setting_here():
  settings = {name for name, *_ in fields_with_meaning()}
  for ours in elsewhere.OURS.values():
    found = re.findall(r'[a-z]+(?:\.\w+)+', ours)
    assert found or ours.startswith('--workdir'), ours
    assert settings.issuperset(found), ours


def test_json_round_trip():
  assert from_dict(Config, to_dict(TREE)) == TREE


def test_from_dict_refuses_unknown_fields():
  with pytest.raises(ConfigError, match='LossConfig has no field tao'):
    from_dict(LossConfig, {'tao': 0.1})


def test_differences_name_the_field_of_the_stage():
  changed = override(override(TREE, 'seed=1'), 'stages.sft.steps=4')
  assert differences(TREE, changed) == [
    'seed: 0 -> 1',
    'stages.sft.steps: 3 -> 4',
  ]
  fewer = dataclasses.replace(TREE, stages=TREE.stages[:1])
  assert differences(TREE, fewer)[0].startswith('stages: ')


def test_every_field_has_a_meaning_and_can_be_listed():
  listed = {name for name, *_ in fields_with_meaning()}
  assert {
    'seed',
    'loss.tau',
    'model.architecture.width',
    'stages.NAME.steps',
  } <= listed
  assert all(m for *_, m in fields_with_meaning())


@pytest.mark.parametrize(
  ('assignments', 'values'),
  [
    (['eval.samples=8', 'eval.ks=1,8'], (8, (1, 8))),
    (['eval.ks=1,8', 'eval.samples=8'], (8, (1, 8))),
    (['eval.samples=2', 'eval.ks=1'], (2, (1,))),
    (['eval.ks=1,8', 'eval.samples=8', 'eval.ks=1'], (8, (1,))),
  ],
)
def test_settings_that_fit_together_have_no_order(assignments, values):
  config = overridden(Config(), assignments)
  assert (config.eval.samples, config.eval.ks) == values


@pytest.mark.parametrize(
  'assignments',
  [
    ['eval.ks=1,8', 'eval.samples=4'],
    ['eval.ks=x', 'eval.ks=1'],
    ['loss.tau=0.3', 'nothing=1'],
  ],
)
def test_what_never_fits_is_refused(assignments):
  with pytest.raises(ConfigError):
    overridden(Config(), assignments)
