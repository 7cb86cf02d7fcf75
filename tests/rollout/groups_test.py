import numpy as np
import pytest

from gft_jax.batch import EXPERT, SELF, TEACHER, Prompts, Responses
from gft_jax.rollout import groups

PROMPTS = Prompts(
  tokens=np.array([[5, 6], [7, 0]], np.int32),
  length=np.array([2, 1], np.int32),
  index=np.array([40, 41], np.int32),
)


def responses_of(lengths, first=0):
  length = np.array(lengths, np.int32)
  shape = (*length.shape, 3)
  tokens = np.arange(first, first + np.prod(shape)).reshape(shape)
  return Responses(
    tokens=tokens.astype(np.int32),
    length=length,
    behavior_logp=-tokens.astype(np.float32),
  )


def test_join_keeps_the_order_experts_teachers_self():
  given, own = responses_of([[3, 0], [1, 2]]), responses_of([[2], [3]], 50)
  origin = np.array([[EXPERT, TEACHER]] * 2)
  joined, origins = groups.join(given, origin, own)
  assert origins.tolist() == [[EXPERT, TEACHER, SELF]] * 2
  assert joined.length.tolist() == [[3, 0, 2], [1, 2, 3]]
  np.testing.assert_array_equal(joined.tokens[:, :2], given.tokens)
  np.testing.assert_array_equal(joined.behavior_logp[:, 2:], own.behavior_logp)


def test_join_without_samples_is_what_was_given():
  given = responses_of([[3], [1]])
  joined, origins = groups.join(given, np.full((2, 1), EXPERT), None)
  np.testing.assert_array_equal(joined.tokens, given.tokens)
  assert origins.tolist() == [[EXPERT], [EXPERT]]


def test_sampled_answers_train_whole_beside_given_ones_that_do_not():
  given, own = responses_of([[3], [2]]), responses_of([[2], [3]], 50)
  trained = np.array([[[1, 0, 1]], [[0, 1, 0]]], bool)
  joined, _ = groups.join(
    given.replace(trained=trained), np.full((2, 1), EXPERT), own
  )
  assert joined.trained.astype(int).tolist() == [
    [[1, 0, 1], [1, 1, 1]],
    [[0, 1, 0], [1, 1, 1]],
  ]
  alone, _ = groups.join(
    given.replace(trained=trained), np.full((2, 1), EXPERT), None
  )
  np.testing.assert_array_equal(alone.trained, trained)
  # Where everything trains, there is no mask to carry.
  assert groups.join(given, np.full((2, 1), EXPERT), own)[0].trained is None


def test_build_masks_empty_slots_and_ignores_their_reward():
  rewards_ = np.array([[1.0, np.nan], [0.0, 0.5]])
  batch = groups.build(
    PROMPTS, responses_of([[3, 0], [1, 2]]), np.zeros((2, 2), int), rewards_
  )
  assert batch.member_mask.tolist() == [[True, False], [True, True]]
  assert batch.rewards.tolist() == [[1.0, 0.0], [0.0, 0.5]]
  expected = [[[1, 1, 1], [0, 0, 0]], [[1, 0, 0], [1, 1, 0]]]
  assert np.asarray(batch.token_mask).astype(int).tolist() == expected


def batch_of(rewards, first):
  """Groups whose tokens tell which batch and row they come from."""
  return groups.build(
    PROMPTS,
    responses_of([[3, 3], [3, 3]], first),
    np.full((2, 2), SELF),
    np.array(rewards),
  )


def test_flat_groups_are_replaced_by_the_first_that_are_not():
  batch = batch_of([[1.0, 1.0], [0.0, 1.0]], first=0)
  further = batch_of([[0.0, 0.0], [1.0, 0.0]], first=100)
  assert groups.flat(batch).tolist() == [True, False]
  filled = groups.refill(batch, further)
  assert filled.rewards.tolist() == [[1, 0], [0, 1]]
  np.testing.assert_array_equal(
    filled.responses.tokens,
    np.stack([further.responses.tokens[1], batch.responses.tokens[1]]),
  )
  assert filled.prompts.index.tolist() == [41, 41]
  assert batch.rewards.tolist() == [[1, 1], [0, 1]]  # It is not written to.


def test_flat_groups_stay_where_nothing_can_replace_them():
  batch = batch_of([[1.0, 1.0], [1.0, 1.0]], first=0)
  further = batch_of([[0.0, 0.0], [1.0, 0.0]], first=100)
  filled = groups.refill(batch, further)
  assert groups.flat(filled).tolist() == [False, True]


def test_a_group_that_replaces_another_brings_its_mask():
  def masked(rewards, first, trained):
    batch = batch_of(rewards, first)
    mask = np.full(batch.responses.tokens.shape, trained)
    return batch.replace(responses=batch.responses.replace(trained=mask))

  filled = groups.refill(
    masked([[1.0, 1.0], [0.0, 1.0]], 0, True),
    masked([[0.0, 0.0], [1.0, 0.0]], 100, False),
  )
  assert filled.responses.trained.all(axis=(1, 2)).tolist() == [False, True]


def test_build_names_both_shapes():
  with pytest.raises(ValueError, match=r'\(2, 1\).*\(2, 2\)'):
    groups.build(
      PROMPTS,
      responses_of([[1, 1], [1, 1]]),
      np.zeros((2, 1), int),
      np.zeros((2, 1)),
    )


def test_pad_rows_repeats_the_last():
  padded = groups.pad_rows({'a': np.array([[1, 2], [3, 4]])}, 4)
  assert padded['a'].tolist() == [[1, 2], [3, 4], [3, 4], [3, 4]]
