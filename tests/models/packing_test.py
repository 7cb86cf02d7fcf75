"""What is packed stands end to end, and comes back to where it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.batch import SELF, Prompts, Responses
from gft_jax.config import MeshConfig
from gft_jax.models import packing
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh
from gft_jax.rollout import groups
from gft_jax.training import microbatches


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
  # Six of 16 tokens train; two of 4 rows are four eighths, and so the list.
  assert packed.source.tolist() == [[0, 1, 2, 8], [12, 13, 16, 16]]
  nowhere = packing.NOWHERE
  assert packed.place.tolist() == [[1, 2, 3, 9], [6, 7, nowhere, nowhere]]


def test_a_long_prompt_is_shared_and_only_the_list_is_packed():
  packed = packing.pack(batch_of([30, 30], [[3, 1], [1, 2]], 30, 4)).packing
  assert packed.rows is None
  # 7 of 16 tokens: half.
  assert packed.source.tolist() == [[0, 1, 2, 4], [8, 12, 13, 16]]
  assert packed.place.tolist() == [[0, 1, 2, 4], [8, 12, 13, packing.NOWHERE]]


def test_a_batch_without_padding_stays_as_it_is():
  batch = batch_of([9, 9], [[4, 4], [4, 4]], 9, 4)
  assert packing.pack(batch) is batch


def test_full_answers_to_prompts_of_their_own_stay_as_they_are():
  batch = batch_of([2] * 17, [[4]] * 17, 2, 4)
  assert packing.pack(batch) is batch


def test_a_model_that_runs_no_rows_has_its_list():
  batch = batch_of([2, 1], [[3, 0], [1, 2]], 2, 4)
  packed = packing.pack(batch, rows=False).packing
  assert packed.rows is None
  assert packed.source.tolist() == [[0, 1, 2], [8, 12, 13]]


def test_parts_that_devices_cannot_fill_are_refused():
  batch = batch_of([2] * 6, [[1]] * 6, 2, 4)
  message = '6 prompts do not fill 2 parts of each of 2 devices'
  with pytest.raises(ValueError, match=message):
    packing.pack(batch, shards=2, parts=2)


def test_the_fullest_part_decides():
  """The second of two, whose answers have 5 tokens for 1."""
  lengths = [[1, 1], [5, 5]] * 2
  packed = packing.pack(batch_of([1] * 4, lengths, 2, 20), parts=2).packing
  # Four sequences of 6 tokens in rows of 22: two rows of each part.
  assert packed.rows.tokens.shape == (4, 22)
  assert [len(set(row)) - 1 for row in packed.rows.segments] == [4, 3, 0, 1]
  assert packed.source.shape == (4, 20)


def test_what_pads_the_list_counts_for_nothing():
  """The last token of the batch trains; five tokens of twelve do."""
  batch = batch_of([30, 30], [[1, 1], [0, 3]], 30, 3)
  packed = packing.pack(batch)
  assert packed.packing.source.size == 6
  own = packing.gather_trained(
    packed, (batch.token_mask, batch.responses.tokens)
  )
  assert own[0].sum() == 5
  assert (own[1] > 0).sum() == 5
  ones = jnp.ones((2, 2, 3, 1))
  gradient = jax.grad(lambda x: packing.trained_states(packed, x).sum())(ones)
  np.testing.assert_array_equal(gradient[..., 0], batch.token_mask)


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
  assert len(alone.rows.tokens) == 4
  # Rows take no more than they need; the list is no smaller than they are.
  for steps, rows, listed in (((3, 2), 6, 6), ((2, 3), 4, 6)):
    asked = []

    def agree(*sizes, steps=steps, asked=asked):
      asked.append(sizes)
      return steps

    packed = packing.pack(batch, agree=agree).packing
    assert asked == [(2, 1)]
    assert len(packed.rows.tokens) == rows
    assert packed.source.shape == (8, listed)


def test_a_run_has_a_handful_of_sizes():
  """Fifty batches whose answers grow to twice their length."""
  rng = np.random.default_rng(0)
  sizes = set()
  for mean in np.linspace(60, 120, 50):
    lengths = np.minimum(rng.geometric(1 / mean, (16, 8)), 256)
    batch = batch_of(rng.integers(10, 64, 16), lengths, 64, 256)
    packed = packing.pack(batch).packing
    sizes.add((packed.rows.tokens.shape, packed.source.shape))
  assert 1 < len(sizes) <= 4


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
  mesh = make_mesh(MeshConfig(data=shards))
  values = rng.normal(size=batch.token_mask.shape)

  @jax.jit
  def there_and_back(batch, values):
    rows = batch.packing.rows
    run = values if rows is None else rows.tokens
    hidden = run[..., None].astype(jnp.float32)
    states = packing.trained_states(batch, hidden)[..., 0]
    own = packing.gather_trained(batch, (batch.responses.tokens, values))
    return packing.scatter_trained(batch, (*own, states))

  with jax.set_mesh(mesh):
    cut = microbatches.split((packed, values), parts)
    for part in range(parts):
      of_part, numbers = jax.tree.map(lambda x: jnp.asarray(x[part]), cut)  # noqa: B023
      rows = sharding.batch_sharding(mesh)
      arguments = jax.device_put((of_part, numbers), rows)
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
