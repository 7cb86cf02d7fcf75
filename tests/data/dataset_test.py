"""Batches without end: their order, their shards, where they continue."""

import json

import numpy as np
import pytest
from data_rows import rows, same

from gft_jax.config import ConfigError


def test_an_epoch_shows_every_row_once_and_the_next_another_order(load):
  batches = load(rows(12)).batches(4, 0)
  epochs = [
    np.concatenate([next(batches).index for _ in range(3)]) for _ in range(3)
  ]
  for order in epochs:
    assert sorted(order) == list(range(1, 13))
  assert len({tuple(order) for order in epochs}) == 3
  again = load(rows(12)).batches(4, 0)
  np.testing.assert_array_equal(next(again).index, epochs[0][:4])
  other = load(rows(12)).batches(4, 1)
  assert not np.array_equal(next(other).index, epochs[0][:4])


def test_a_batch_never_holds_a_row_twice(load):
  batches = load(rows(11)).batches(4, 0)
  for _ in range(20):
    assert len(set(next(batches).index)) == 4


@pytest.mark.parametrize('consumed', [0, 1, 3, 5, 8])
def test_a_saved_position_continues_exactly(load, consumed):
  whole = load(rows(14)).batches(4, 0)
  for _ in range(consumed):
    next(whole)
  state = json.loads(json.dumps(whole.get_state()))
  expected = [next(whole) for _ in range(7)]  # Across two epochs.
  restored = load(rows(14)).batches(4, 0)
  next(restored)
  restored.set_state(state)
  for one in expected:
    assert same(next(restored), one)


def test_a_position_of_other_data_is_refused(load):
  state = load(rows(12)).batches(4, 0).get_state()
  changed = rows(12)
  changed[5]['expert'] = '#6'
  with pytest.raises(ConfigError, match='the data has changed'):
    load(changed).batches(4, 0).set_state(state)
  load(rows(12)).batches(2, 0).set_state(state)


def test_shards_are_the_parts_of_one_batch(load):
  whole = load(rows(12)).batches(4, 0)
  shards = [load(rows(12)).batches(4, 0, k, 2) for k in range(2)]
  for _ in range(6):
    one = next(whole).index
    parts = [next(shard).index for shard in shards]
    assert [len(part) for part in parts] == [2, 2]
    assert np.concatenate(parts).tolist() == one.tolist()


def test_sizes_that_do_not_fit(load):
  with pytest.raises(ConfigError, match=r'batch_size=4 is not.*3 processes'):
    load(rows(12)).batches(4, 0, 0, 3)
  with pytest.raises(ConfigError, match=r'batch_size=4 exceeds the 3 rows'):
    load(rows(3)).batches(4, 0)
