"""Masks of a batch are lengths, and what trains among the real tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gft_jax.batch import (
  EXPERT,
  SELF,
  GroupBatch,
  Prompts,
  Responses,
  host_mask,
)
from gft_jax.config import Architecture, LossConfig
from gft_jax.models import packing
from gft_jax.models.forward import response_states
from gft_jax.models.transformer import Transformer
from gft_jax.ops.logprobs import target_logprobs
from gft_jax.rollout import groups
from gft_jax.training import objectives, train_step


def test_the_end_is_the_last_token_unless_the_limit_may_have_cut_it():
  length = np.array([[3, 4, 2, 4, 0]])
  origin = np.array([[EXPERT, EXPERT, SELF, SELF, SELF]])
  batch = GroupBatch(
    prompts=Prompts(np.zeros((1, 1)), np.ones(1), np.zeros(1)),
    responses=Responses(np.zeros((1, 5, 4)), length, np.zeros((1, 5, 4))),
    rewards=np.zeros((1, 5)),
    origin=origin,
    member_mask=np.array([[True] * 4 + [False]]),
  )
  assert np.asarray(batch.end_mask)[0].astype(int).tolist() == [
    [0, 0, 1, 0],
    [0, 0, 0, 1],
    [0, 1, 0, 0],
    [0, 0, 0, 0],
    [0, 0, 0, 0],
  ]


B, P, T, V = 4, 5, 8, 19
# Two turns of the assistant, one, one that ends before the padding, all.
TRAINED = np.array(
  [
    [1, 1, 0, 0, 0, 1, 1, 1],
    [0, 0, 0, 1, 1, 1, 1, 1],
    [1, 1, 1, 0, 0, 1, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 1],
  ],
  bool,
)[:, None]
LENGTH = np.array([[8], [8], [6], [3]])


@pytest.fixture(scope='module')
def model():
  return Transformer(Architecture(vocab_size=V, width=32, mlp_width=64))


@pytest.fixture(scope='module')
def batch():
  """Conversations: groups of one given answer."""
  rng = np.random.default_rng(0)
  return groups.build(
    Prompts(
      tokens=rng.integers(0, V, (B, P)).astype(np.int32),
      length=np.array([5, 1, 3, 4], np.int32),
      index=np.arange(B, dtype=np.int32),
    ),
    Responses(
      tokens=rng.integers(0, V, (B, 1, T)).astype(np.int32),
      length=LENGTH.astype(np.int32),
      behavior_logp=np.zeros((B, 1, T), np.float32),
      trained=TRAINED,
    ),
    np.full((B, 1), EXPERT),
    np.zeros((B, 1), np.float32),
  )


@pytest.fixture(scope='module')
def params(model, batch):
  return model.init(
    jax.random.key(0), batch.prompts.tokens, batch.prompts.length
  )['params']


def test_turns_of_a_user_do_not_train_and_each_turn_has_its_end(batch):
  assert np.asarray(batch.token_mask)[:, 0].astype(int).tolist() == [
    [1, 1, 0, 0, 0, 1, 1, 1],
    [0, 0, 0, 1, 1, 1, 1, 1],
    [1, 1, 1, 0, 0, 1, 0, 0],
    [1, 1, 1, 0, 0, 0, 0, 0],
  ]
  assert np.asarray(batch.end_mask)[:, 0].astype(int).tolist() == [
    [0, 1, 0, 0, 0, 0, 0, 1],
    [0, 0, 0, 0, 0, 0, 0, 1],
    [0, 0, 1, 0, 0, 1, 0, 0],
    [0, 0, 1, 0, 0, 0, 0, 0],
  ]
  assert host_mask(batch.responses).sum() == 5 + 5 + 4 + 3
  everything = batch.responses.replace(trained=None)
  assert host_mask(everything).sum() == 8 + 8 + 6 + 3


@pytest.fixture(scope='module')
def updated(model, params):
  """Batch -> parameters after a step of SFT whose rate is 1, and its loss."""
  step = jax.jit(
    train_step.make_train_step(
      model, objectives.OBJECTIVES['sft'], LossConfig(chunk=7)
    )
  )
  state = train_step.create_state(model, params, optax.sgd(1.0))

  def run(batch):
    after, metrics, _ = step(state, batch, None)
    return after.params, metrics['loss'].value

  return run


@pytest.fixture(scope='module')
def by_hand(model, params, batch):
  """(targets, mask) -> parameters after that step, and the loss.

  Of log-probabilities that no mask has seen.
  """

  def loss(params, targets, mask):
    hidden, head = response_states(model, params, batch)
    logp, _ = target_logprobs(hidden, head, targets, chunk=64)
    return -jnp.where(mask, logp, 0).sum() / mask.sum()

  gradient = jax.jit(jax.value_and_grad(loss))

  def run(targets, mask):
    value, slope = gradient(params, targets, mask)
    return jax.tree.map(lambda x, dx: x - dx, params, slope), value

  return run


def close(one, other, atol=1e-5):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, atol=atol, rtol=0)


def test_the_gradient_is_that_of_the_trained_tokens(batch, updated, by_hand):
  tokens, real = batch.responses.tokens, np.arange(T) < LENGTH[..., None]
  close(updated(batch), by_hand(tokens, TRAINED & real))
  with pytest.raises(AssertionError):
    close(updated(batch), by_hand(tokens, real))


def test_the_target_of_a_user_changes_no_gradient(batch, by_hand):
  """What they say is read, but not learnt: targets differ, inputs do not."""
  noise = np.random.default_rng(1).integers(0, V, (B, 1, T)).astype(np.int32)
  tokens, mask = batch.responses.tokens, np.asarray(batch.token_mask)
  expected = by_hand(tokens, mask)
  close(by_hand(np.where(mask, tokens, noise), mask), expected, atol=0)
  with pytest.raises(AssertionError):
    close(by_hand(np.where(mask, noise, tokens), mask), expected)


def test_words_of_a_user_that_nothing_follows_change_nothing(batch, updated):
  trained = TRAINED.copy()
  trained[2, 0, 5] = False
  responses = batch.responses.replace(trained=trained)
  tokens = responses.tokens.copy()
  tokens[2, 0, 3:6] = (tokens[2, 0, 3:6] + 1) % V
  one = updated(batch.replace(responses=responses))
  other = updated(batch.replace(responses=responses.replace(tokens=tokens)))
  close(one, other, atol=0)


def test_packed_conversations_train_as_unpacked(batch, updated):
  packed = packing.pack(batch)
  np.testing.assert_array_equal(packed.responses.trained, TRAINED)
  close(updated(packed), updated(batch))
