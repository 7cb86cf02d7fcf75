"""Splits that are read from a file."""

import json

import pytest
from data_rows import GROUP

from gft_jax import data
from gft_jax.config import DataConfig
from gft_jax.data import arithmetic


@pytest.fixture
def load(tmp_path):
  """Loads rows through a file, all of them for training."""

  def load(rows, group=GROUP, tokenizer=None, seed=0, **settings):
    path = tmp_path / 'rows.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    config = DataConfig(
      path=str(path),
      eval_path=str(path),
      cache=str(tmp_path / 'cache'),
      **{'max_prompt': 16, 'max_response': 40} | settings,
    )
    tokenizer = tokenizer or arithmetic.tokenizer()
    return data.load(config, group, tokenizer, 'train', seed)

  return load
