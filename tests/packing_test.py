"""What is packed stands end to end, and comes back to where it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax import groups, packing, parallel, train_step
from gft_jax.batch import SELF, Prompts, Responses
from gft_jax.config import MeshConfig


def batch_of(prompts, lengths, prompt_size, size):
  """Tokens of prompt b are 10 b + 1 on, those of answers 100 on, each its own."""
  prompts, length = np.array(prompts), np.array(lengths)
  first = 10 * np.arange(len(prompts))[:, None] + 1
  tokens = 100 + np.arange(length.size * size).reshape(*length.shape, size)
  return groups.build(
    Prompts(first + np.arange(prompt_size), prompts, np.arange(len(prompts))),
    Responses(tokens, length, -tokens.astype(np.float32)),
    np.full(length.shape, SELF),
    np.zeros(length.shape),
  )


def test_rows_hold_the_longest_first_wherever_they_fit():
  """Prompts of 2 and 1 tokens, answers of at most 4; one slot is empty."""
  packed = packing.pack(batch_of([2, 1], [[3, 0], [1, 2]], 2, 4)).packing
  assert packed.rows.tokens.tolist() == [
    [1, 2, 100, 101, 102, 0],
    [11, 112, 113, 11, 108, 0],
  ]
  assert packed.rows.positions.tolist() == [
    [0, 1, 2, 3, 4, 0],
    [0, 1, 2, 0, 1, 0],
  ]
  assert packed.rows.segments.tolist() == [
    [1, 1, 1, 1, 1, 0],
    [3, 3, 3, 2, 2, 0],
  ]
  # Of 16 tokens 6 are listed; 4 prompts of 2 rows: half of all, so 4 a prompt.
  assert packed.source.tolist() == [[0, 1, 2, 8], [12, 13, 16, 16]]
  assert packed.place.tolist() == [[1, 2, 3, 9], [6, 7, 0, 0]]


def test_a_long_prompt_is_shared_and_only_the_list_is_packed():
  packed = packing.pack(batch_of([30, 30], [[3, 1], [1, 2]], 30, 4)).packing
  assert packed.rows is None
  # 7 of 16 tokens: half.
  assert packed.source.tolist() == [[0, 1, 2, 4], [8, 12, 13, 16]]
  assert packed.place.tolist() == [[0, 1, 2, 4], [8, 12, 13, 0]]


def test_a_batch_without_padding_stays_as_it_is():
  batch = batch_of([9, 9], [[4, 4], [4, 4]], 9, 4)
  assert packing.pack(batch) is batch


def test_one_answer_a_prompt_never_takes_more_rows_than_there_are():
  packed = packing.pack(batch_of([2] * 17, [[4]] * 17, 2, 4)).packing
  assert packed.rows.tokens.shape == (17, 6)


def test_nothing_to_train_is_no_error():
  batch = batch_of([2, 1], [[0, 0], [0, 0]], 2, 4)
  packed = packing.pack(batch).packing
  assert (packed.source == 16).all()
  assert not packed.rows.segments.any()


def test_what_no_token_trains_is_left_out():
  batch = batch_of([2, 1], [[3, 1], [1, 2]], 2, 4)
  trained = np.ones((2, 2, 4), bool)
  trained[0, 0] = False
  responses = batch.responses.replace(trained=trained)
  rows = packing.pack(batch.replace(responses=responses)).packing.rows
  assert 100 not in rows.tokens
  assert {104, 108, 112, 113} <= set(rows.tokens.ravel().tolist())


def test_the_sizes_are_those_that_all_processes_need():
  batch = batch_of([1] * 8, [[1, 1]] * 8, 2, 8)
  alone = packing.pack(batch).packing
  asked = []

  def agree(*sizes):
    asked.append(sizes)
    return 3, 2

  packed = packing.pack(batch, agree=agree).packing
  assert asked == [(2, 1)]
  assert len(alone.rows.tokens) == 4 and len(packed.rows.tokens) == 6
  assert packed.source.shape == (8, 6)


@pytest.mark.parametrize(
  ('shards', 'parts'), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2)]
)
@pytest.mark.parametrize('prompt', [3, 400])
def test_every_part_of_every_device_finds_its_own(shards, parts, prompt):
  """`listed` and `spread` of random numbers, as the step cuts the batch."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(0, 6, (16, 3))
  prompts = rng.integers(prompt // 2, prompt, 16)
  batch = batch_of(prompts, lengths, prompt, 20)
  packed = packing.pack(batch, shards=shards, parts=parts)
  assert (packed.packing.rows is None) == (prompt == 400)
  mesh = parallel.make_mesh(MeshConfig(data=shards))
  values = rng.normal(size=batch.token_mask.shape)

  @jax.jit
  def there_and_back(batch, values):
    rows = batch.packing.rows
    run = values if rows is None else rows.tokens
    states = packing.states(batch, run[..., None])[..., 0]
    own = packing.listed(batch, (batch.responses.tokens, values))
    return packing.spread(batch, (*own, states))

  with jax.set_mesh(mesh):
    cut = train_step.split((packed, values), parts)
    for part in range(parts):
      of_part, numbers = jax.tree.map(lambda x: jnp.asarray(x[part]), cut)  # noqa: B023
      sharding = parallel.batch_sharding(mesh)
      arguments = jax.device_put((of_part, numbers), sharding)
      tokens, back, states = there_and_back(*arguments)
      mask = np.asarray(of_part.token_mask)
      own = of_part.responses.tokens
      np.testing.assert_array_equal(tokens, np.where(mask, own, 0))
      np.testing.assert_array_equal(back, np.where(mask, numbers, 0))
      if packed.packing.rows is None:
        run = numbers
      else:  # The token that predicts answer token t stands before it.
        prompts = of_part.prompts
        last = (prompts.length - 1)[:, None]
        last = jnp.take_along_axis(prompts.tokens, last, axis=1)[:, None]
        last = jnp.broadcast_to(last, (*mask.shape[:2], 1))
        run = jnp.concatenate([last, own[..., :-1]], axis=-1)
      np.testing.assert_array_equal(states, np.where(mask, run, 0))
