"""Lengths of a dataset in tokens, and the rows that its limits drop."""

import dataclasses
import json

import numpy as np
import pytest

from gft_jax.config import Config, ConfigError, DataConfig, GroupConfig
from gft_jax.data import arithmetic, inspection


@pytest.fixture
def config(tmp_path):
  """Ten experts of 8 to 17 tokens with EOS; the last row has two teachers."""
  path = tmp_path / 'a.jsonl'
  rows = [
    {
      'prompt': '1+1:',
      'answer': '2',
      'expert': '1+1=2' + ',' * i + '#2',
      'teacher': ['#2', '2#2'] if i == 9 else [],
    }
    for i in range(10)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  data = DataConfig(
    path=str(path),
    eval_path=str(path),
    cache=str(tmp_path / 'cache'),
    max_response=15,
  )
  return Config(data=data, group=GroupConfig(teachers=1))


def test_lengths_are_of_all_rows_and_all_teachers(config):
  found = inspection.token_lengths(config, arithmetic.tokenizer(), 'train')
  assert found['prompt'] == (10, 4.0, 4, 4, 4)
  assert found['expert'] == (10, 12.5, 12, 17, 17)
  assert found['teacher'] == (2, 3.5, 3, 4, 4)
  assert list(found) == ['prompt', 'expert', 'teacher']


def test_a_role_without_a_text_is_absent(config, tmp_path):
  path = tmp_path / 'b.jsonl'
  path.write_text(json.dumps({'prompt': '1+1:', 'answer': '2'}) + '\n')
  data = dataclasses.replace(config.data, path=str(path), eval_path=str(path))
  config = dataclasses.replace(config, data=data)
  found = inspection.token_lengths(config, arithmetic.tokenizer(), 'train')
  assert list(found) == ['prompt']


@pytest.mark.parametrize('limit, first', [(15, 9), (10, 4), (8, 2)])
def test_dropped_rows_are_named_however_many(config, limit, first):
  data = dataclasses.replace(config.data, max_response=limit)
  config = dataclasses.replace(config, data=data)
  found = inspection.dropped_rows(config, arithmetic.tokenizer(), 'train')
  assert found == {
    f'experts longer than data.max_response={limit}': [*range(first, 11)]
  }


def test_no_row_left_is_refused(config):
  data = dataclasses.replace(config.data, max_response=7)
  config = dataclasses.replace(config, data=data)
  with pytest.raises(ConfigError, match='10 of 10 rows are dropped'):
    inspection.dropped_rows(config, arithmetic.tokenizer(), 'train')


def test_percentiles_are_lengths_that_occur():
  found = inspection.lengths_of(np.array([1, 2, 4, 5, 1000], np.int32))
  assert found == (5, 202.4, 4, 1000, 1000)
  assert json.loads(json.dumps(found._asdict()))['p95'] == 1000
