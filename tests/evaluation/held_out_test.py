import numpy as np
import pytest

from gft_jax.batch import Prompts, Responses
from gft_jax.config import Config, EvalConfig, MeshConfig
from gft_jax.evaluation.held_out import HeldOutEvaluation, group_logprobs
from gft_jax.rollout import groups


class Naming:
  """An engine whose log-probabilities name prompt, token and place."""

  def __init__(self):
    self.asked = []

  def token_logprobs(self, params, batch, *, chunk):
    tokens = batch.responses.tokens
    self.asked.append(tokens.shape)
    place = np.arange(tokens.shape[-1])
    named = 1000 * batch.prompts.index[:, None, None] + 10 * tokens + place
    return np.where(batch.token_mask, -named, 0.0).astype(np.float32)


def test_groups_are_asked_in_the_shape_of_demonstrations():
  """Three groups of two answers of three tokens, as four rows of width five."""
  length = np.array([[3, 0], [1, 2], [3, 3]], np.int32)
  tokens = np.arange(18, dtype=np.int32).reshape(3, 2, 3)
  whole = groups.build(
    Prompts(np.ones((3, 4), np.int32), np.full(3, 4), np.array([7, 8, 9])),
    Responses(tokens, length, np.zeros(tokens.shape, np.float32)),
    np.zeros((3, 2), int),
    np.zeros((3, 2), np.float32),
  )
  engine = Naming()
  config = Config(eval=EvalConfig(prompts=4, batch_size=4))
  found = group_logprobs(engine, None, whole, config, 5)
  assert engine.asked == [(4, 1, 5)] * 2
  expected = np.zeros((3, 2, 3))
  for b, g, t in np.ndindex(3, 2, 3):
    if t < length[b, g]:
      expected[b, g, t] = -(1000 * (7 + b) + 10 * tokens[b, g, t] + t)
  np.testing.assert_array_equal(found, expected)


class Rows:
  """A dataset whose examples are their numbers."""

  def __len__(self):
    return 20

  def examples(self, rows):
    return rows.tolist()


@pytest.mark.parametrize(
  ('count', 'mesh', 'batches'),
  [
    (3, MeshConfig(), [[0, 1, 2]]),
    (1, MeshConfig(data=2), [[0, 0]]),
    (10, MeshConfig(), [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
    (7, MeshConfig(fsdp=2), [[0, 1, 2, 3, 4, 5, 6, 6]]),
    # No more rows than the split has.
    (
      99,
      MeshConfig(),
      [list(range(7)), list(range(7, 14)), [*range(14, 20), 19]],
    ),
  ],
)
def test_batches_are_as_large_as_what_is_asked(count, mesh, batches):
  """A batch of eight would compute up to eight times as much."""
  config = Config(mesh=mesh, eval=EvalConfig(batch_size=8))
  evaluation = HeldOutEvaluation(None, None, config, 'gft/1')
  found = list(evaluation._shares(Rows(), count))
  assert [rows for rows, _ in found] == batches
  real = [n for rows, real in found for n, one in zip(rows, real) if one]
  assert real == list(range(min(count, 20)))
