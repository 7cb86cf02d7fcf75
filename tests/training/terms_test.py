"""Whose tokens an objective sees, and settings that are closed."""

import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.batch import EXPERT, SELF, TEACHER
from gft_jax.config import LossConfig
from gft_jax.training.terms import View, resolved

MASK = np.array([[[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]], bool)
ORIGIN = np.array([[EXPERT, TEACHER, SELF, SELF]], np.int32)
END = np.array([[[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]], bool)


def view(mask=MASK, origin=ORIGIN, end=END):
  zeros = jnp.zeros(mask.shape)
  return View(
    logp=zeros,
    behavior_logp=zeros,
    entropy=zeros,
    advantages=jnp.zeros(origin.shape),
    origin=jnp.asarray(origin),
    mask=jnp.asarray(mask),
    end=jnp.asarray(end),
    step=jnp.int32(0),
  )


def ints(mask):
  return np.asarray(mask).astype(int).tolist()


def test_own_tokens_are_those_of_the_policy_that_train():
  assert ints(view().own) == [[[0, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]]


def test_given_tokens_are_those_of_experts_and_teachers_that_train():
  assert ints(view().given) == [[[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]]


def test_tokens_by_themselves_know_whose_they_are():
  """As the forward pass sees them: n responses of one token."""
  tokens = view(
    mask=np.array([[1], [1], [1], [0]], bool),
    origin=np.array([EXPERT, TEACHER, SELF, SELF], np.int32),
    end=np.zeros((4, 1), bool),
  )
  assert ints(tokens.own) == [[0], [0], [1], [0]]
  assert ints(tokens.given) == [[1], [1], [0], [0]]


def test_ends_are_kept_where_they_are_not_to_be_rectified():
  kept = view().kept(LossConfig(rectify_end=False))
  np.testing.assert_array_equal(kept, END)
  assert view().kept(LossConfig(rectify_end=True)) is None
  assert view().kept(LossConfig()) is None  # as in the paper


def test_a_setting_that_is_none_is_an_error_and_zero_is_a_value():
  assert resolved(0.0) == 0.0 and resolved('') == '' and resolved(3) == 3
  with pytest.raises(ValueError, match=r'see objectives\.resolve'):
    resolved(None)
