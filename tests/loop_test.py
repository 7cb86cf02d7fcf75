"""The loop on a decoder that trains in seconds."""

import dataclasses
import json
import math
import re
import sys
import time

import chex
import jax
import numpy as np
import pytest
from small_runs import alone, demonstrations

from gft_jax import evaluate, huggingface
from gft_jax.config import ConfigError, Stage, override
from gft_jax.data import arithmetic
from gft_jax.evaluation.held_out import HeldOutEvaluation
from gft_jax.loop import train
from gft_jax.parallel.mesh import warn_of_idle_devices
from gft_jax.policy import load_policy, restore_stage
from gft_jax.report import groups as report_groups
from gft_jax.report.run import goodput, read_run
from gft_jax.rewards.journal import Journal
from gft_jax.run import writers
from gft_jax.run.workdir import read_config
from gft_jax.training.metrics import NonFiniteError


def comparable(records):
  """Without wall-clock and memory."""
  return [
    {k: v for k, v in r.items() if not k.startswith(('time/', 'memory/'))}
    for r in records
  ]


def test_a_run_leaves_config_metrics_checkpoints_and_a_report(config, whole):
  workdir, results = whole
  assert json.loads((workdir / 'config.json').read_text())['seed'] == 0
  assert (workdir / 'report' / 'index.html').stat().st_size > 1000
  tape = [
    (r['stage'], r['step'], 'eval/entropy' in r)
    for r in writers.read_metrics(workdir)
  ]
  assert tape == [
    *[('base', i, False) for i in (1, 2, 3)],
    ('base', 3, True),
    *[('gft', i, False) for i in (1, 2, 3)],
    ('gft', 3, True),
    *[('grpo', i, False) for i in (1, 2)],
    ('grpo', 2, True),
  ]
  steps = {
    stage.name: sorted(
      int(p.name) for p in (workdir / 'checkpoints' / stage.name).iterdir()
    )
    for stage in config.stages
  }
  assert steps == {'base': [2, 3], 'gft': [2, 3], 'grpo': [2]}
  assert set(results) == {'base', 'gft', 'grpo'}


def test_metrics_of_a_gft_step_are_there_and_finite(whole):
  record = [
    r
    for r in writers.read_metrics(whole[0])
    if r['stage'] == 'gft' and 'train/loss' in r
  ][-1]
  assert {
    'train/entropy',
    'train/grad_norm',
    'train/learning_rate',
    'train/logp_expert',
    'train/max_inverse_probability',
    'train/max_weight',
    'train/rectified_fraction',
    'train/response_length_self',
    'train/reward',
    'train/reward_expert',
    'train/reward_self',
    'train/reward_teacher',
    'train/tokens',
    'train/truncated_fraction',
    'train/zero_variance_groups',
    'time/data',
    'time/reward',
    'time/sample',
    'time/update',
    'memory/host_peak_mb',
  } <= set(record)
  numbers = [v for v in record.values() if not isinstance(v, str)]
  assert all(math.isfinite(v) for v in numbers)
  assert record['train/reward_expert'] == 1.0
  # Two programs compute these log-probabilities; they agree.
  assert 0 <= record['train/sampler_mismatch'] < 1e-5


def shown_of(workdir, stage):
  return report_groups.read(workdir / f'report/groups/{stage}.json')


def test_groups_of_each_stage_are_kept_for_the_report(whole):
  workdir, _ = whole
  base, gft, grpo = (shown_of(workdir, s) for s in ('base', 'gft', 'grpo'))
  assert (gft.objective, gft.step, gft.tau) == ('gft', 3, 0.7)
  # The same prompts in stages of one dataset.
  assert [g.prompt for g in gft.groups] == [g.prompt for g in grpo.groups]
  assert len({g.prompt for g in gft.groups}) == report_groups.PROMPTS
  for group in gft.groups:
    origins = [m.origin for m in group.members]
    assert origins == ['expert', 'teacher', 'self', 'self']
    rewards = np.array([m.reward for m in group.members])
    expert = group.members[0]
    assert expert.reward == 1.0
    assert ''.join(expert.tokens).endswith(f'#{group.answer}$')
    spread = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    advantages = [m.advantage for m in group.members]
    np.testing.assert_allclose(advantages, spread, atol=1e-4)
  for group in grpo.groups:
    assert [m.origin for m in group.members] == ['self'] * 4
  for group in base.groups:
    (member,) = group.members
    assert member.origin == 'expert' and member.advantage is None
  page = (workdir / 'report' / 'index.html').read_text()
  for stage in ('base', 'gft', 'grpo'):
    assert f'<summary><b>{stage}</b>' in page


def test_their_probabilities_are_those_of_the_policy(config, whole):
  """Of each token after its text alone: no group, no chunk, no padding."""
  policy = load_policy(config)
  params, _ = restore_stage(policy, whole[0], 'gft')
  encode = policy.tokenizer.convert_tokens_to_ids
  tokens, length, targets, found = [], [], [], []
  for group in shown_of(whole[0], 'gft').groups:
    prompt = encode(list(group.prompt))
    for member in group.members:
      ids = encode(member.tokens)
      assert len(ids) == len(member.p) == member.length
      for i, target in enumerate(ids):
        before = [*prompt, *ids[:i]]
        tokens.append(before + [0] * (50 - len(before)))
        length.append(len(before))
        targets.append(target)
      found += member.p
  prefix = policy.model.apply(
    {'params': params}, np.array(tokens), np.array(length)
  )
  head = policy.model.apply({'params': params}, method='head')
  p = jax.nn.softmax(prefix.hidden @ head)[np.arange(len(found)), targets]
  assert len(found) > 50
  np.testing.assert_allclose(found, p, rtol=1e-4)


def test_groups_that_cannot_be_written_stop_no_run(config, tmp_path, caplog):
  (tmp_path / 'report').mkdir()
  (tmp_path / 'report/groups').write_text('a file where the folder would be')
  stage = dataclasses.replace(config.stages[0], steps=1)
  train(dataclasses.replace(config, stages=(stage,)), tmp_path)
  assert 'base.json is not written' in caplog.text
  assert 'Sample groups' not in (tmp_path / 'report/index.html').read_text()


def test_drift_is_from_the_base_stage(whole):
  _, results = whole
  assert results['base']['eval/kl_to_base'] == 0.0
  assert results['gft']['eval/kl_to_base'] > 0.0


def test_a_stage_is_evaluated_as_often_as_asked(config, tmp_path):
  stage = dataclasses.replace(config.stages[0], steps=5)
  often = dataclasses.replace(config, stages=(stage,))
  train(override(often, 'eval.every=2'), tmp_path)
  evaluated = [
    record['step']
    for record in writers.read_metrics(tmp_path)
    if 'eval/test/avg@2' in record
  ]
  assert evaluated == [2, 4, 5]


def test_a_finished_run_is_not_run_again(config, whole):
  workdir, results = whole
  before = (workdir / 'metrics.jsonl').read_bytes()
  assert train(config, workdir) == results
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def training(workdir):
  """Records of steps, without those of evaluations."""
  return [r for r in writers.read_metrics(workdir) if 'train/loss' in r]


def steps_of(workdir):
  return [r['step'] for r in training(workdir)]


@pytest.mark.slow
@pytest.mark.parametrize(
  ('objective', 'group', 'samplers', 'most'),
  # Packed sequences come in eighths of the batch: mostly one or two of them.
  [('gft', (), 1, 2), ('sft', ('group.samples=0', 'group.teachers=0'), 0, 3)],
)
def test_few_programs_are_compiled_however_lengths_vary(
  config, tmp_path, caplog, objective, group, samplers, most
):
  stage = Stage('arm', '', objective, 12, (*group, 'data.batch_size=16'))
  config = override(override(config, 'eval.splits=()'), 'eval.base=')
  # Settings that no other test has: the programs are new.
  config = override(config, 'loss.chunk=77')
  config = override(config, 'sampler.temperature=0.77')
  with jax.log_compiles(), caplog.at_level('WARNING'):
    train(dataclasses.replace(config, stages=(stage,)), tmp_path)
  compiled = re.findall(r'Finished XLA compilation of jit\((\w+)', caplog.text)
  assert len({r['train/tokens'] for r in training(tmp_path)}) > 4
  assert 1 <= compiled.count('update') <= most
  assert compiled.count('sample') == samplers
  assert len(compiled) <= 16


@pytest.mark.parametrize('what', ['stop_strings', 'stop_ids'])
def test_a_stop_ends_the_answers_of_a_stage(config, tmp_path, what):
  """As a string or as ids; of this stage, whatever the run has."""
  digits = '0123456789'
  if what == 'stop_ids':
    digits = map(str, arithmetic.tokenizer().convert_tokens_to_ids([*digits]))
  digits = ','.join(digits)
  train(
    alone(
      config,
      'grpo',
      'group.experts=0',
      'group.teachers=0',
      f'sampler.{what}={digits}',
    ),
    tmp_path,
  )
  # A fresh policy writes a digit soon, and seldom the end.
  for record in training(tmp_path):
    assert record['train/response_length_self'] < 8
    assert record['train/truncated_fraction'] < 0.1


@pytest.mark.slow
def test_a_stop_string_that_the_vocabulary_cannot_spell_stops_nothing(
  config, tmp_path
):
  own = ('group.experts=0', 'group.teachers=0')
  for name, strings in (('with', ('sampler.stop_strings=Z',)), ('without', ())):
    train(alone(config, 'grpo', *own, *strings), tmp_path / name)
  assert comparable(training(tmp_path / 'with')) == comparable(
    training(tmp_path / 'without')
  )


@pytest.mark.slow
def test_a_budget_of_tokens_ends_a_stage(config, tmp_path):
  given = ('group.samples=0', 'group.teachers=0')
  whole = alone(config, 'sft', *given)
  train(whole, tmp_path / 'whole')
  tokens = [r['train/tokens'] for r in training(tmp_path / 'whole')]
  budget = alone(config, 'sft', *given, tokens=sum(tokens[:1]) + 1)
  train(budget, tmp_path / 'budget')
  assert steps_of(tmp_path / 'whole') == [1, 2, 3]
  assert steps_of(tmp_path / 'budget') == [1, 2]
  train(budget, tmp_path / 'budget')
  assert steps_of(tmp_path / 'budget') == [1, 2]  # It is finished.


def test_a_budget_of_seconds_does_not_count_the_first_step(config, tmp_path):
  given = ('group.samples=0', 'group.teachers=0')
  train(alone(config, 'sft', *given, seconds=1e-9), tmp_path)
  assert steps_of(tmp_path) == [1, 2]


def letters(prompt, answer, response):
  """Flat for a third of the prompts: whose first character is a digit < 4."""
  return float(len(response) % 2 and prompt[0] > '3')


DYNAMIC = (
  'group.experts=0',
  'group.teachers=0',
  'reward.function=tests.loop_test:letters',
  'group.refills=2',
  'checkpoint.every=1',
)


@pytest.mark.slow
def test_dynamic_sampling_replaces_flat_groups_and_resumes_bit_for_bit(
  config, tmp_path, monkeypatch
):
  whole = alone(config, 'dapo', *DYNAMIC)
  train(whole, tmp_path / 'whole')
  records = training(tmp_path / 'whole')
  used = [r['train/refills'] for r in records]
  assert max(used) > 0 and all(0 <= r <= 2 for r in used)
  off = alone(config, 'dapo', *DYNAMIC, 'group.refills=0')
  train(off, tmp_path / 'off')
  flat = lambda records: np.mean(  # noqa: E731
    [r['train/zero_variance_groups'] for r in records]
  )
  assert flat(records) < flat(training(tmp_path / 'off'))

  kill_at(monkeypatch, ('arm', 3))
  with pytest.raises(Stop):
    train(whole, tmp_path / 'killed')
  monkeypatch.undo()
  train(whole, tmp_path / 'killed')
  assert comparable(training(tmp_path / 'killed')) == comparable(records)


def test_a_kl_is_to_the_policy_that_the_stage_starts_from(config, tmp_path):
  """0 before its first update, and then more and more."""
  given = ('group.samples=0', 'group.teachers=0', 'loss.kl_weight=0.1')
  config = alone(config, 'asft', *given, 'checkpoint.every=2')
  config = dataclasses.replace(
    config,
    stages=(Stage('first', '', 'sft', 1, given[:2]), *config.stages),
  )
  config = override(config, 'stages.arm.start=first')
  train(config, tmp_path)
  kl = [r['train/loss_kl'] for r in training(tmp_path) if r['stage'] == 'arm']
  assert abs(kl[0]) < 1e-6 < kl[1] < kl[2]


def phases(record):
  return {
    k: v
    for k, v in record.items()
    if k.startswith('time/') and k not in ('time/wall', 'time/begun')
  }


def test_every_second_of_a_run_is_accounted_for(whole):
  """Also those of a run of several stages, but for the writing of records."""
  records = writers.read_metrics(whole[0])
  walls = [r['time/wall'] for r in records]
  assert walls == sorted(walls)
  spent = [sum(phases(r).values()) for r in records]
  assert 0.9 * walls[-1] < sum(spent) <= walls[-1]
  assert [i for i, r in enumerate(records) if 'time/begun' in r] == [0]
  assert [(r['stage'], r['step']) for r in records if 'time/start' in r] == [
    (stage, 1) for stage in ('base', 'gft', 'grpo')
  ]
  # Of the step before, and of the last of the stage before.
  assert [(r['stage'], r['step']) for r in records if 'time/save' in r] == [
    ('base', 3),
    ('gft', 1),
    ('gft', 3),
    ('grpo', 1),
  ]
  made = [r for r in records if 'memory/programs' in r]
  assert made and all(r['time/compile'] > 0 for r in made)
  # Lengths vary from step to step, and no program is made anew for that.
  later = [
    r for r in training(whole[0]) if r['stage'] == 'gft' and r['step'] > 1
  ]
  assert later and not any('memory/programs' in r for r in later)


def test_a_killed_run_shows_the_time_it_lost(config, tmp_path, monkeypatch):
  given = ('group.samples=0', 'group.teachers=0', 'checkpoint.every=2')
  config = alone(config, 'sft', *given)
  config = override(config, 'stages.arm.steps=5')
  with monkeypatch.context() as patch:
    kill_at(patch, ('arm', 4))
    with pytest.raises(Stop):
      train(config, tmp_path)
  killed = writers.read_metrics(tmp_path)
  assert [r['step'] for r in killed] == [1, 2, 3]  # saved at 2
  time.sleep(0.3)
  train(config, tmp_path)
  records = writers.read_metrics(tmp_path)
  assert [r['step'] for r in records if 'train/loss' in r] == [1, 2, 3, 4, 5]
  assert records[:2] == killed[:2]
  assert [r['step'] for r in records if 'time/down' in r] == [3]
  back = records[2]
  assert (
    back['time/lost'] == killed[2]['time/wall'] - killed[1]['time/wall'] > 0
  )
  assert 0.3 < back['time/down'] < 10
  assert back['time/begun'] == killed[0]['time/begun']
  wall = records[-1]['time/wall']
  spent = goodput(read_run(tmp_path))
  assert sum(spent.values()) == pytest.approx(wall)
  assert spent['lost'] == back['time/lost']
  assert spent['other'] < 0.1 * wall


@pytest.mark.slow
def test_a_traced_step_is_waited_for(config, tmp_path, monkeypatch):
  """Others are not where nothing is sampled: the next is prepared meanwhile."""
  given = ('group.samples=0', 'group.teachers=0')
  config = override(alone(config, 'sft', *given), 'log.profile=2..2')
  waited = []
  wait = jax.block_until_ready
  monkeypatch.setattr(
    jax, 'block_until_ready', lambda x: waited.append(wait(x))
  )
  train(config, tmp_path)
  assert len(waited) == 1


@pytest.mark.slow
def test_a_profile_may_be_asked_for_when_a_run_goes_on(
  config, tmp_path, monkeypatch
):
  config = alone(config, 'gft', 'checkpoint.every=1')
  with monkeypatch.context() as patch:
    kill_at(patch, ('arm', 3))
    with pytest.raises(Stop):
      train(config, tmp_path)
  assert not (tmp_path / 'profile').exists()
  traced = override(config, 'log.profile=2..3')
  with pytest.raises(ConfigError, match=r'changed: seed: 0 -> 1;'):
    train(override(traced, 'seed=1'), tmp_path)
  train(traced, tmp_path)

  (path,) = (tmp_path / 'profile/arm').rglob('*.xplane.pb')
  found = {}
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    for line in plane.lines:
      for event in line.events:
        found.setdefault(event.name, []).append(dict(event.stats))
  assert [stats['step_num'] for stats in found['step']] == [3]
  for phase in ('data', 'sample', 'reward', 'update'):
    assert len(found[phase]) == 1
  trace = path.read_bytes()
  for scope in (b'group_advantages', b'dynamic_coefficient', b'next_token'):
    assert scope in trace


class Stop(Exception):
  """Stands for a kill."""


def kill_at(monkeypatch, kill):
  """The run stops where it would write the record of (stage, step)."""
  write = writers.MetricsFile.write

  def write_until_killed(self, record):
    if (record['stage'], record['step']) == kill:
      raise Stop
    write(self, record)

  monkeypatch.setattr(writers.MetricsFile, 'write', write_until_killed)


@pytest.mark.parametrize(
  'kill',
  [
    pytest.param(('base', 3), marks=pytest.mark.slow),
    pytest.param(('gft', 1), marks=pytest.mark.slow),
    ('gft', 3),
  ],
)
def test_resume_repeats_the_uninterrupted_run_bit_for_bit(
  config, whole, tmp_path, monkeypatch, kill
):
  with monkeypatch.context() as patch:
    kill_at(patch, kill)
    with pytest.raises(Stop):
      train(config, tmp_path)
  assert train(config, tmp_path) == whole[1]
  assert comparable(writers.read_metrics(tmp_path)) == comparable(
    writers.read_metrics(whole[0])
  )
  policy = load_policy(config)
  chex.assert_trees_all_equal(
    restore_stage(policy, tmp_path, 'grpo'),
    restore_stage(policy, whole[0], 'grpo'),
  )
  for stage in ('base', 'gft', 'grpo'):
    assert shown_of(tmp_path, stage) == shown_of(whole[0], stage)


def with_adapters(config, folder):
  """One stage that trains adapters of a fresh model, written to `folder`."""
  policy = load_policy(config)
  huggingface.save(folder, policy.model, policy.params, policy.tokenizer)
  for assignment in (
    f'model.path={folder}',
    'model.lora.rank=2',
    'eval.splits=()',
    'eval.base=',
    'stages.gft.overrides=loss.kl_weight=0.1',
  ):
    config = override(config, assignment)
  stage = dataclasses.replace(config.stages[1], start='')
  return dataclasses.replace(config, stages=(stage,))


@pytest.mark.slow
def test_a_run_with_adapters_resumes_bit_for_bit_and_keeps_them_alone(
  config, tmp_path, monkeypatch
):
  config = with_adapters(config, tmp_path / 'model')
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  train(config, whole)
  with monkeypatch.context() as patch:
    kill_at(patch, ('gft', 3))
    with pytest.raises(Stop):
      train(config, killed)
  train(config, killed)
  steps = training(whole)
  assert comparable(training(killed)) == comparable(steps)

  policy = load_policy(config)
  found, _ = restore_stage(policy, whole, 'gft')
  chex.assert_trees_all_equal(found, restore_stage(policy, killed, 'gft')[0])
  # Every adapter has moved, and what is kept are adapters alone.
  for path, leaf in jax.tree_util.tree_leaves_with_path(found):
    assert jax.tree_util.keystr(path).endswith(("lora_a']", "lora_b']"))
    assert leaf.any()
  first, *_, last = steps
  assert abs(first['train/loss_kl']) < 1e-6 < last['train/loss_kl']
  assert last['train/sampler_mismatch'] < 1e-5


def test_a_changed_config_is_refused_by_name(config, whole):
  changed = override(config, 'loss.tau=0.1')
  with pytest.raises(ConfigError, match=r'changed: loss.tau: 0.7 -> 0.1;'):
    train(changed, whole[0])


def test_a_run_that_wandb_refuses_writes_nothing(config, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  config = override(config, 'log.wandb=true')
  with pytest.raises(ConfigError, match='pip install wandb'):
    train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_finished_run_may_be_extended(config, tmp_path, caplog):
  """By steps and by a stage: as if it had been asked for from the start."""
  warn_of_idle_devices.cache_clear()
  train(demonstrations(config, ('a', '', 2)), tmp_path / 'run')
  (said,) = [line for line in caplog.messages if 'stay idle' in line]
  assert said == (
    '7 of 8 devices stay idle; mesh.data=4 gives prompts to 4 devices'
  )
  longer = demonstrations(config, ('a', '', 3), ('b', 'a', 1))
  train(longer, tmp_path / 'run')
  train(longer, tmp_path / 'whole')
  assert comparable(training(tmp_path / 'run')) == comparable(
    training(tmp_path / 'whole')
  )
  assert steps_of(tmp_path / 'run') == [1, 2, 3, 1]
  assert read_config(tmp_path / 'run') == longer


@pytest.mark.slow
def test_the_best_step_is_kept_and_found(config, tmp_path, monkeypatch):
  """Every evaluation is saved; its number decides, not the newest."""
  numbers = iter([0.25, 0.75, 0.5])
  measure = HeldOutEvaluation.measure

  def scripted(*args, **kwargs):
    return measure(*args, **kwargs) | {'eval/test/pass@2': next(numbers)}

  monkeypatch.setattr(HeldOutEvaluation, 'measure', scripted)
  stage = dataclasses.replace(config.stages[0], steps=3)
  config = dataclasses.replace(config, stages=(stage,))
  for assignment in (
    'checkpoint.every=100',
    'checkpoint.keep=1',
    'checkpoint.best=eval/test/pass@2',
    'eval.every=1',
  ):
    config = override(config, assignment)
  train(config, tmp_path)
  folder = tmp_path / 'checkpoints/base'
  assert sorted(p.name for p in folder.iterdir()) == ['00000002', '00000003']
  policy = load_policy(config)
  best, step = restore_stage(policy, tmp_path, 'base', best=True)
  newest, last = restore_stage(policy, tmp_path, 'base')
  assert (step, last) == (2, 3)
  assert not np.array_equal(best['embedding'], newest['embedding'])


def test_a_non_finite_step_is_named_and_the_last_checkpoint_stands(
  config, tmp_path
):
  explode = ('optimizer.learning_rate=1e30', 'optimizer.clip_norm=0')
  stage = dataclasses.replace(
    config.stages[0],
    steps=6,
    overrides=(*config.stages[0].overrides, *explode, 'checkpoint.every=1'),
  )
  config = dataclasses.replace(config, stages=(stage,))
  with pytest.raises(NonFiniteError, match='stage base, step 2'):
    train(config, tmp_path)
  policy = load_policy(config)
  _, step = restore_stage(policy, tmp_path, 'base')
  assert step == 1


def test_time_outs_are_journalled_and_replayed(config, tmp_path):
  """The reward sleeps on its first run of an answer; the replay must not."""
  config = override(config, 'reward.function=tests.reward_functions:hang')
  config = override(config, 'reward.workers=1')
  config = override(config, 'reward.timeout_s=0.2')
  config = dataclasses.replace(
    config,
    stages=(Stage('gft', '', 'gft', 1),),
    eval=dataclasses.replace(config.eval, splits=(), base=''),
    data=dataclasses.replace(config.data, batch_size=1),
  )
  train(config, tmp_path)
  (record,) = writers.read_metrics(tmp_path)[:1]
  count = record['train/reward_failures/timeout']
  assert count > 0
  journal = Journal(tmp_path / 'timeouts.jsonl')
  assert len(journal.replay('gft/1')) >= 1


@pytest.mark.slow
def test_mesh_of_eight_gives_the_same_run(config, whole, tmp_path):
  """Sums over devices round differently, so: to a tolerance."""
  config = override(config, 'data.batch_size=8')
  alone = dataclasses.replace(config, stages=config.stages[:1])
  spread = override(override(alone, 'mesh.data=4'), 'mesh.fsdp=2')
  spread = override(spread, 'eval.batch_size=8')
  alone = override(alone, 'eval.batch_size=8')
  train(alone, tmp_path / 'alone')
  train(spread, tmp_path / 'spread')
  for a, b in zip(
    comparable(writers.read_metrics(tmp_path / 'alone')),
    comparable(writers.read_metrics(tmp_path / 'spread')),
  ):
    assert a.keys() == b.keys()
    for name, value in a.items():
      if name.startswith('train/'):
        np.testing.assert_allclose(value, b[name], rtol=1e-3, err_msg=name)


@pytest.mark.slow
def test_adapters_on_a_mesh_of_eight_give_the_same_run(config, tmp_path):
  """And what evaluates its result: the drift is from the frozen model."""
  config = with_adapters(config, tmp_path / 'model')
  runs = []
  for name, size in (('alone', 1), ('spread', 2)):
    settings = config
    for axis in ('data', 'fsdp', 'tensor'):
      settings = override(settings, f'mesh.{axis}={size}')
    train(settings, tmp_path / name)
    policy = load_policy(settings)
    params, _ = restore_stage(policy, tmp_path / name, 'gft')
    metrics = evaluate.evaluate_policy(
      override(settings, 'eval.splits=test'),
      tmp_path / f'{name}-evaluated',
      policy,
      params,
    )
    runs.append((training(tmp_path / name), params, metrics))
  (alone, ours, metrics), (spread, theirs, spread_metrics) = runs
  for a, b in zip(alone, spread, strict=True):
    for key in ('train/loss', 'train/grad_norm', 'train/logp_expert'):
      np.testing.assert_allclose(a[key], b[key], rtol=1e-3, err_msg=key)
  chex.assert_trees_all_close(
    *jax.tree.map(np.asarray, (ours, theirs)), atol=1e-4
  )
  key = 'eval/expert_logp'
  np.testing.assert_allclose(metrics[key], spread_metrics[key], rtol=1e-4)
  assert metrics['eval/kl_to_base'] > 0 < spread_metrics['eval/kl_to_base']
