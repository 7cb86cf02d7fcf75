"""Masks of a batch are lengths."""

import numpy as np

from gft_jax.batch import EXPERT, SELF, GroupBatch, Prompts, Responses


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
