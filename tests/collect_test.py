"""One rollout, step by step, with an engine that says what it is told."""

import dataclasses

import jax
import numpy as np
import pytest

from gft_jax.batch import EXPERT, SELF, TEACHER, Responses
from gft_jax.collect import Collector, any_flat
from gft_jax.config import Config, DataConfig, GroupConfig, RewardConfig
from gft_jax.data.dataset import Examples
from gft_jax.rewards.grader import Scores
from gft_jax.rewards.tally import Failure, RewardError
from gft_jax.run.clock import Clock
from gft_jax.training.objectives import OBJECTIVES

B, T, SAMPLES = 2, 3, 2
PARAMS = {'w': np.zeros(1)}


def scores(values, parts=None, failures=None):
  counts = {k: Failure(n, '') for k, n in (failures or {}).items()}
  values = np.array(values, np.float32)
  return Scores(values, parts or {}, {'exact': counts}, (), values.size)


class Engine:
  """Answers are numbered; the k-th rollout gets the k-th scores."""

  def __init__(self, *scored, stopped=((True, True), (True, True))):
    self.scored, self.stopped = list(scored), np.array(stopped)
    self.sampled, self.graded, self.columns = [], [], []
    self.told = set()

  def sample(self, params, prompts, key, settings, group_size, max_tokens):
    assert params is PARAMS
    self.sampled.append((prompts.index.tolist(), key, settings, max_tokens))
    shape = (B, group_size, max_tokens)
    return Responses(
      np.full(shape, 90 + len(self.sampled), np.int32),
      np.full((B, group_size), 2, np.int32),
      np.full(shape, -0.5, np.float32),
    )

  def decode(self, responses, settings, prompts):
    texts = [[f'own {b}{k}' for k in range(SAMPLES)] for b in range(B)]
    return texts, self.stopped

  def score(self, settings, name, problems, texts, present, finished):
    self.columns.append(problems.columns)
    self.graded.append(
      {
        'settings': settings,
        'name': name,
        'prompts': problems.prompts,
        'answers': problems.answers,
        'texts': texts,
        'present': present.tolist(),
        'finished': finished.tolist(),
      }
    )
    return self.scored.pop(0)


def examples(first=0, trained=None):
  """Two prompts with an expert each; the second has no teacher."""
  return Examples(
    tokens=np.full((B, 2), 1 + first, np.int32),
    length=np.array([2, 1], np.int32),
    index=np.array([first, first + 1], np.int32),
    given_tokens=np.full((B, 2, T), 5, np.int32),
    given_length=np.array([[3, 1], [2, 0]], np.int32),
    given_origin=np.array([EXPERT, TEACHER], np.int32),
    prompts=['p0', 'p1'],
    answers=['a0', 'a1'],
    given_texts=[['expert 0', 'teacher 0'], ['expert 1', '']],
    given_trained=trained,
  )


def collector(engine, objective='gft', samples=SAMPLES, refills=0):
  settings = Config(
    data=DataConfig(batch_size=B, max_response=T),
    group=GroupConfig(experts=1, teachers=1, samples=samples, refills=refills),
    reward=RewardConfig(function='exact'),
  )
  return Collector(engine, settings, OBJECTIVES[objective], Clock())


def key(number=0):
  return jax.random.key(number)


def same_key(one, other):
  return (jax.random.key_data(one) == jax.random.key_data(other)).all()


VARIED = [[1, 0, 1, 0], [1, 9, 0, 0]]  # 9 is of an empty slot.


def test_a_group_is_what_was_given_and_then_what_was_sampled():
  engine = Engine(scores(VARIED), stopped=[[True, False], [True, True]])
  work = collector(engine)
  batch, record = work.groups_of(PARAMS, examples(), key(), 'gft/1')
  assert batch.origin.tolist() == [[EXPERT, TEACHER, SELF, SELF]] * B
  assert batch.responses.length.tolist() == [[3, 1, 2, 2], [2, 0, 2, 2]]
  assert batch.responses.tokens[:, :, 0].tolist() == [[5, 5, 91, 91]] * B
  assert batch.responses.behavior_logp[:, :, 0].tolist() == (
    [[0, 0, -0.5, -0.5]] * B
  )
  assert batch.member_mask.tolist() == [[True] * 4, [True, False, True, True]]
  assert batch.rewards.tolist() == [[1, 0, 1, 0], [1, 0, 0, 0]]
  assert batch.prompts.index.tolist() == [0, 1]
  # Of the four that were sampled, one was cut.
  assert record == {'train/truncated_fraction': 0.25}
  assert {*work.clock.record()} >= {'time/sample', 'time/reward'}


def test_the_sampler_is_asked_with_the_settings_of_the_stage():
  engine, rollout = Engine(scores(VARIED)), key(7)
  work = collector(engine)
  work.groups_of(PARAMS, examples(4), rollout, 'gft/1')
  ((index, used, settings, most),) = engine.sampled
  assert index == [4, 5] and most == T
  assert used is rollout and settings is work.settings.sampler


def test_the_grader_sees_each_text_whether_it_is_there_and_whether_it_ended():
  engine = Engine(scores(VARIED), stopped=[[True, False], [False, True]])
  work = collector(engine)
  work.groups_of(PARAMS, examples(), key(), 'gft/1')
  assert engine.graded == [
    {
      'settings': work.settings.reward,
      'name': 'gft/1',
      'prompts': ['p0', 'p1'],
      'answers': ['a0', 'a1'],
      'texts': [
        ['expert 0', 'teacher 0', 'own 00', 'own 01'],
        ['expert 1', '', 'own 10', 'own 11'],
      ],
      'present': [[True] * 4, [True, False, True, True]],
      'finished': [[True, True, True, False], [True, False, False, True]],
    }
  ]


def test_without_samples_the_given_answers_are_graded():
  engine = Engine(scores([[1, 0], [1, 0]]))
  batch, record = collector(engine, samples=0).groups_of(
    PARAMS, examples(), key(), 'gft/1'
  )
  assert engine.sampled == [] and record == {}
  assert engine.graded[0]['texts'] == [
    ['expert 0', 'teacher 0'],
    ['expert 1', ''],
  ]
  assert engine.graded[0]['finished'] == [[True, True], [True, False]]
  assert batch.rewards.tolist() == [[1, 0], [1, 0]]
  assert batch.origin.tolist() == [[EXPERT, TEACHER]] * B


def test_an_objective_without_rewards_asks_for_none():
  engine = Engine()  # It would have no scores to give.
  work = collector(engine, 'sft', samples=0)
  batch, record = work.groups_of(PARAMS, examples(), key(), 'sft/1')
  assert engine.graded == [] and record == {}
  assert batch.rewards.tolist() == [[0, 0], [0, 0]]
  assert batch.rewards.dtype == np.float32
  assert work.clock.record() == {}


def test_failures_are_counts_and_parts_are_means_over_members():
  parts = {
    'exact': np.array([[1, 0, 1, 0], [1, 50, 0, 0]], np.float32),
    'length': np.array([[0, 0, 0, 7], [0, 50, 0, 7]], np.float32),
  }
  engine = Engine(scores(VARIED, parts, {'parse': 3, 'timeout': 1}))
  _, record = collector(engine).groups_of(PARAMS, examples(), key(), 'gft/1')
  assert record == {
    'train/truncated_fraction': 0.0,
    'train/reward_failures/parse': 3,
    'train/reward_failures/timeout': 1,
    'train/reward_part/exact': pytest.approx(3 / 7),
    'train/reward_part/length': pytest.approx(14 / 7),
  }


def test_a_reward_that_fails_for_every_answer_of_a_step_stops_it():
  """Two rollouts make the step; one that fails for some goes on."""
  failed = {'own:f': {'error': Failure(7, 'NameError: x (f.py:1)')}}
  flat = scores([FLAT, MIXED])._replace(failed=failed, answers=7)
  rest = scores([MIXED, FLAT])._replace(failed=failed, answers=7)
  batches = [examples(10 * k) for k in range(2)]
  work = collector(Engine(flat, rest), refills=1)
  with pytest.raises(RewardError, match=r'all 14 answers of step gft/3 .*f.py'):
    work.collect(PARAMS, iter(batches), key(), 'gft/3')
  right = rest._replace(failed={}, answers=7)
  work = collector(Engine(flat, right), refills=1)
  _, record = work.collect(PARAMS, iter(batches), key(), 'gft/3')
  assert record['train/reward_failures/error'] == 7


def test_columns_go_to_the_grader_with_their_rows():
  engine = Engine(scores(VARIED))
  carried = ['{"unit": "m"}', '{"unit": "kg"}']
  rows = dataclasses.replace(examples(), columns=carried)
  collector(engine).groups_of(PARAMS, rows, key(), 'gft/1')
  assert engine.columns == [carried]


def test_a_reward_of_one_part_is_not_said_twice():
  parts = {'exact': np.array(VARIED, np.float32)}
  _, record = collector(Engine(scores(VARIED, parts))).groups_of(
    PARAMS, examples(), key(), 'gft/1'
  )
  assert record == {'train/truncated_fraction': 0.0}


def test_without_refills_a_step_takes_one_batch_and_flat_groups_stay():
  engine = Engine(scores(np.ones((B, 4))))
  batches, rollout = iter([examples(0), examples(10)]), key(3)
  work = collector(engine)
  batch, record = work.collect(PARAMS, batches, rollout, 'gft/3')
  assert any_flat(batch)
  assert next(batches).index.tolist() == [10, 11]
  assert same_key(engine.sampled[0][1], rollout)
  assert engine.graded[0]['name'] == 'gft/3'
  # 3 + 1 + 2 + 2 tokens of the first group, 2 + 0 + 2 + 2 of the second.
  assert record == {'train/truncated_fraction': 0.0, 'train/tokens': 14}
  assert 'time/data' in work.clock.record()


def test_tokens_are_those_that_train():
  trained = np.zeros((B, 2, T), bool)
  trained[0, 0] = [True, False, True]
  engine = Engine(scores(VARIED))
  _, record = collector(engine).collect(
    PARAMS, iter([examples(trained=trained)]), key(), 'gft/1'
  )
  assert record['train/tokens'] == 2 + B * SAMPLES * 2


FLAT = [1, 1, 1, 1]
MIXED = [1, 0, 0, 0]


def test_flat_groups_are_replaced_by_those_of_further_rollouts():
  engine = Engine(
    scores([FLAT, MIXED]),
    scores([FLAT, FLAT]),
    scores([MIXED, FLAT]),
    scores([MIXED, MIXED]),
  )
  batches, rollout = iter([examples(10 * k) for k in range(4)]), key(3)
  work = collector(engine, refills=3)
  batch, record = work.collect(PARAMS, batches, rollout, 'gft/3')
  assert batch.rewards.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
  assert batch.prompts.index.tolist() == [20, 1]
  assert batch.prompts.tokens[:, 0].tolist() == [21, 1]
  assert batch.responses.tokens[:, 2, 0].tolist() == [93, 91]
  # It ends as soon as no group is flat; the fourth batch is left.
  assert record['train/refills'] == 2
  assert next(batches).index.tolist() == [30, 31]
  assert [g['name'] for g in engine.graded] == ['gft/3', 'gft/3/1', 'gft/3/2']
  keys = [k for _, k, _, _ in engine.sampled]
  expected = [rollout, *(jax.random.fold_in(rollout, k) for k in (1, 2))]
  assert all(map(same_key, keys, expected))


def test_there_are_no_more_rollouts_than_refills_asks_for():
  engine = Engine(*[scores([FLAT, FLAT])] * 3)
  batch, record = collector(engine, refills=2).collect(
    PARAMS, iter([examples(10 * k) for k in range(3)]), key(), 'gft/3'
  )
  assert batch.prompts.index.tolist() == [0, 1]
  assert record['train/refills'] == 2 and engine.scored == []


def test_where_no_group_is_flat_no_refill_is_used():
  _, record = collector(Engine(scores(VARIED)), refills=2).collect(
    PARAMS, iter([examples()]), key(), 'gft/3'
  )
  assert record == {
    'train/truncated_fraction': 0.0,
    'train/refills': 0,
    'train/tokens': 14,
  }


def test_over_rollouts_counts_are_added_and_means_are_divided():
  def parts(exact):
    one = np.full((B, 4), exact, np.float32)
    return {'exact': one, 'length': np.zeros((B, 4), np.float32)}

  engine = Engine(
    scores([FLAT, MIXED], parts(1.0), {'parse': 3}),
    scores([FLAT, FLAT], parts(0.25), {'parse': 1, 'timeout': 1}),
    scores([MIXED, FLAT], parts(0.25)),
    stopped=[[True, False], [True, True]],
  )
  _, record = collector(engine, refills=5).collect(
    PARAMS, iter([examples(10 * k) for k in range(3)]), key(), 'gft/3'
  )
  assert record == {
    'train/reward_failures/parse': 4,
    'train/reward_failures/timeout': 1,
    'train/reward_part/exact': pytest.approx(0.5),
    'train/reward_part/length': 0.0,
    'train/truncated_fraction': pytest.approx(0.25),
    'train/refills': 2,
    # Of the batch that trains, not of what was thrown away.
    'train/tokens': 14,
  }
