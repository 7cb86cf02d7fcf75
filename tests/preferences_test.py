"""Pairs -> a reward model -> RLHF, on the embedded task."""

import dataclasses
import itertools
import json

import chex
import numpy as np
import pytest

from gft_jax import huggingface, preferences
from gft_jax.config import CheckpointConfig, ConfigError, Stage, override
from gft_jax.data import arithmetic
from gft_jax.loop import train
from gft_jax.preferences import Pair


def pairs_of_arithmetic(count):
  """The expert's chain beside one whose result is one too large."""
  rows = itertools.islice(arithmetic.rows('train', expert='terse'), count)
  return [
    Pair(
      row['prompt'],
      row['expert'],
      row['expert'].rpartition('#')[0] + f'#{int(row["answer"]) + 1}',
    )
    for row in rows
  ]


@pytest.fixture(scope='module')
def settings(config):
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, batch_size=8),
    optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-2),
    checkpoint=CheckpointConfig(every=3),
  )


@pytest.fixture(scope='module')
def trained(settings, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('reward_model')
  return workdir, preferences.train_reward_model(
    settings, pairs_of_arithmetic(80), workdir, epochs=2
  )


def records(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_training_writes_a_run_and_a_folder(trained):
  workdir, evaluation = trained
  steps = [r for r in records(workdir) if 'train/loss' in r]
  assert [r['step'] for r in steps] == list(range(1, 19))  # 2 x 72 // 8
  assert steps[-1]['train/loss'] < steps[0]['train/loss']
  assert set(evaluation) - {'pairs', 'too_long'} == {
    *('eval/loss', 'eval/accuracy', 'eval/margin')
  }
  assert (evaluation['pairs'], evaluation['too_long']) == (80, 0)
  model, params, _ = huggingface.load_reward_model(workdir / 'model')
  assert model.architecture.tied_head
  assert params['score'].shape == (model.architecture.width, 1)


@pytest.mark.slow
def test_an_interrupted_training_ends_the_same(
  settings, trained, tmp_path, monkeypatch
):
  class Killed(Exception):
    pass

  saved = preferences.checkpoint.save

  def save(directory, step, *args, **kwargs):
    saved(directory, step, *args, **kwargs)
    if step == 9:
      raise Killed

  pairs = pairs_of_arithmetic(80)
  monkeypatch.setattr(preferences.checkpoint, 'save', save)
  with pytest.raises(Killed):
    preferences.train_reward_model(settings, pairs, tmp_path, epochs=2)
  monkeypatch.undo()
  preferences.train_reward_model(settings, pairs, tmp_path, epochs=2)
  assert records(tmp_path) == records(trained[0])
  _, ours, _ = huggingface.load_reward_model(tmp_path / 'model')
  _, theirs, _ = huggingface.load_reward_model(trained[0] / 'model')
  chex.assert_trees_all_equal(ours, theirs)


def test_other_pairs_or_epochs_are_not_gone_on_with(settings, trained):
  pairs = [
    pair._replace(chosen=pair.rejected, rejected=pair.chosen)
    for pair in pairs_of_arithmetic(80)
  ]
  for changed, epochs in ((pairs, 2), (pairs_of_arithmetic(80), 3)):
    with pytest.raises(ConfigError, match='was begun with 18 steps on the'):
      preferences.train_reward_model(settings, changed, trained[0], epochs)


@pytest.mark.parametrize(
  'setting',
  [
    *('data.template=plain', 'optimizer.micro_batches=2'),
    *('data.system=Be terse.', 'data.instruction=Box it.'),
    *('checkpoint.best=eval/test/avg@4', 'log.profile=3..5'),
  ],
)
def test_a_setting_without_use_is_refused(settings, tmp_path, setting):
  with pytest.raises(ConfigError, match='a reward model is trained with'):
    preferences.train_reward_model(
      override(settings, setting), [], tmp_path / 'a', 1
    )


def test_grpo_on_a_reward_model_with_a_kl_and_another_part(
  config, trained, tmp_path
):
  """The stage after GFT: policy = GRPO, reward = a learned model + a rule."""
  folder = trained[0] / 'model'
  overrides = (
    *('group.experts=0', 'group.teachers=0', 'group.samples=4'),
    'reward.function=model + 0.5 * arithmetic',
    f'reward.model={folder}',
    'loss.kl_weight=0.05',
  )
  settings = dataclasses.replace(
    config,
    eval=dataclasses.replace(config.eval, reward='arithmetic', base=''),
    stages=(Stage('rlhf', '', 'grpo', 2, overrides),),
  )
  train(settings, tmp_path)
  steps = [r for r in records(tmp_path) if 'train/loss' in r]
  for record in steps:
    assert record['train/reward'] == pytest.approx(
      record['train/reward_part/model']
      + 0.5 * record['train/reward_part/arithmetic'],
      abs=1e-5,
    )
  assert np.ptp([r['train/reward_part/model'] for r in steps]) > 0
  # Evaluations count right answers, not what the model likes.
  (evaluation,) = [r for r in records(tmp_path) if 'eval/test/avg@2' in r]
  assert 0 <= evaluation['eval/test/avg@2'] <= 1


def test_pairs_of_a_file(tmp_path):
  path = tmp_path / 'pairs.jsonl'
  row = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'source': 'x'}
  path.write_text(json.dumps(row) + '\n')
  assert preferences.read_pairs(path) == [Pair('a', 'b', 'c')]


ASKED = {'role': 'user', 'content': 'a'}
GOOD, BAD = ({'role': 'assistant', 'content': text} for text in 'bc')


@pytest.mark.parametrize(
  'row',
  [
    {'prompt': [ASKED], 'chosen': [GOOD], 'rejected': [BAD]},
    {'prompt': 'a', 'chosen': [GOOD], 'rejected': [BAD]},
    {'prompt': 'a', 'chosen': [ASKED, GOOD], 'rejected': [ASKED, BAD]},
    {'chosen': [ASKED, GOOD], 'rejected': [ASKED, BAD]},
    {'prompt': 'a', 'chosen': GOOD, 'rejected': {'from': 'gpt', 'value': 'c'}},
  ],
)
def test_pairs_of_turns(tmp_path, row):
  path = tmp_path / 'pairs.jsonl'
  path.write_text(json.dumps(row) + '\n')
  assert preferences.read_pairs(path) == [Pair('a', 'b', 'c')]


@pytest.mark.parametrize(
  'asked, chosen',
  [
    ([{'role': 'system', 'content': 's'}, ASKED], [GOOD]),
    ([ASKED], [GOOD, ASKED, GOOD]),
    ([ASKED], [{**GOOD, 'reasoning_content': 'd'}]),
    ([ASKED], [ASKED]),
  ],
)
def test_pairs_of_more_than_two_answers_are_named(tmp_path, asked, chosen):
  path = tmp_path / 'pairs.jsonl'
  row = {'prompt': asked, 'chosen': chosen, 'rejected': [BAD]}
  path.write_text(json.dumps(row) + '\n')
  with pytest.raises(ConfigError, match='row 1 is a conversation; a pair is'):
    preferences.read_pairs(path)


def test_pairs_of_kept_answers(tmp_path):
  path = tmp_path / 'test.jsonl'
  rows = [
    *(('p', 'good', 1.0), ('p', 'bad', 0.0), ('p', 'fair', 0.5)),
    *(('p', 'worse', -1.0), ('p', 'good', 1.0), ('q', 'same', 1.0)),
    *(('q', 'too', 1.0), ('r', 'alone', 1.0)),
    *(('s', '', 0.0), ('s', 'more', 1.0)),  # One stopped at once.
  ]
  lines = [dict(zip(('prompt', 'response', 'reward'), row)) for row in rows]
  path.write_text('\n'.join(map(json.dumps, lines)))
  assert preferences.read_pairs(path) == [
    Pair('p', 'good', 'worse'),
    Pair('p', 'fair', 'bad'),
    Pair('s', 'more', ''),
  ]


@pytest.mark.parametrize(
  'line, words',
  [
    ('{"prompt": "a", "chosen": "b"}', "row 1 has no column 'rejected'"),
    ('{"prompt": "a", "chosen": "b", "rejected": 3}', 'rejected is a int'),
    ('{"prompt": "a", "chosen": "b", "rejected": "b"}', 'the same text chosen'),
    ('{"prompt": "a", "response": "b", "reward": null}', 'no finite number'),
    ('[1]', 'row 1 is not a JSON object'),
    ('{"prompt": "a", "response": "b", "reward": 1}', 'has no pair'),
  ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, line, words):
  path = tmp_path / 'pairs.jsonl'
  path.write_text(line)
  with pytest.raises(ConfigError, match=words) as error:
    preferences.read_pairs(path)
  assert '\n' not in str(error.value)


def test_pairs_that_do_not_fit_are_refused_with_numbers(settings, tmp_path):
  pairs = pairs_of_arithmetic(20)
  short = dataclasses.replace(
    settings, data=dataclasses.replace(settings.data, max_response=2)
  )
  with pytest.raises(ConfigError, match='20 of 20 pairs exceed'):
    short_data = dataclasses.replace(short.data, max_dropped=0.5)
    short = dataclasses.replace(short, data=short_data)
    preferences.train_reward_model(short, pairs, tmp_path / 'a', 1)
  with pytest.raises(ConfigError, match='batch_size=8 needs more'):
    preferences.train_reward_model(settings, pairs[:6], tmp_path / 'b', 1)
  with pytest.raises(ConfigError, match='all pairs have one prompt'):
    preferences.train_reward_model(settings, pairs[:1], tmp_path / 'b', 1)
  assert not (tmp_path / 'a').exists() and not (tmp_path / 'b').exists()


def test_no_prompt_is_both_trained_on_and_held_out():
  pairs = [Pair(f'p{i // 2}', 'a', 'b') for i in range(40)]
  seen, held_out = preferences._split(pairs)
  assert len(held_out) == 4
  assert len(seen) == 36
  assert not {p.prompt for p in seen} & {p.prompt for p in held_out}
