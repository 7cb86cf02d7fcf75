"""A dataset of the hub is a file; the library stands for the connection."""

import sys
import types

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gft_jax.config import ConfigError, DataConfig
from gft_jax.data import builders, hub

ROWS = [{'question': f'{i}?', 'answer': f'#### {i}'} for i in range(20)]


@pytest.fixture
def library(monkeypatch):
  """`datasets` with one dataset; what was asked of it."""
  asked = []

  class Dataset:
    def to_parquet(self, path):
      pq.write_table(pa.Table.from_pylist(ROWS), path)

  def load_dataset(name, config, *, split):
    asked.append((name, config, split))
    if name != 'openai/gsm8k':
      raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nas it is")
    return Dataset()

  module = types.SimpleNamespace(load_dataset=load_dataset, __version__='4.0.0')
  monkeypatch.setitem(sys.modules, 'datasets', module)
  return asked


def test_a_dataset_of_the_hub_is_prepared_as_a_file(tmp_path, library):
  settings = DataConfig(
    path='hub:openai/gsm8k:main',
    eval_path='hub:openai/gsm8k:main:test',
    cache=str(tmp_path),
  )
  for _ in range(2):  # Fetched, then found.
    rows = builders.source(settings, 'train').rows
    assert [row['answer'] for row in rows] == [str(i) for i in range(20)]
  assert library == [
    ('openai/gsm8k', 'main', 'train'),
    ('openai/gsm8k', 'main', 'test'),
  ]
  names = sorted(path.name for path in (tmp_path / 'hub').iterdir())
  assert names == [
    'openai--gsm8k--main--test.parquet',
    'openai--gsm8k--main--train.parquet',
  ]


@pytest.mark.parametrize(
  'path, expected',
  [
    ('hub:openai/gsm8k', ('openai/gsm8k', None, 'train')),
    ('hub:openai/gsm8k::test', ('openai/gsm8k', None, 'test')),
  ],
)
def test_config_and_split_may_be_left_out(tmp_path, library, path, expected):
  hub.fetched(path, tmp_path)
  assert library == [expected]


@pytest.mark.parametrize(
  'path', ['hub:', 'hub:gsm8k', 'hub:a/b:c:d:e', 'hub:../x/y', 'hub:a/b c']
)
def test_other_spellings_are_refused(tmp_path, library, path):
  with pytest.raises(ConfigError, match=r'not spelled hub:OWNER/NAME\[:CONFIG'):
    hub.fetched(path, tmp_path)
  assert not library


def test_no_connection_is_one_line(tmp_path, library):
  with pytest.raises(ConfigError) as caught:
    hub.fetched('hub:nobody/nothing', tmp_path)
  assert str(caught.value) == (
    'hub:nobody/nothing cannot be fetched:'
    " Couldn't reach 'nobody/nothing' on the Hub"
  )
  assert not (tmp_path / 'hub').exists()


def test_a_library_that_runs_scripts_is_refused(tmp_path, library):
  sys.modules['datasets'].__version__ = '3.6.0'
  with pytest.raises(ConfigError, match=r'datasets 3\.6\.0 runs scripts'):
    hub.fetched('hub:openai/gsm8k:main', tmp_path)
  assert not library


def test_no_library_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  with pytest.raises(ConfigError, match='pip install datasets; or name a file'):
    hub.fetched('hub:openai/gsm8k:main', tmp_path)


def test_nothing_is_fetched_that_cannot_be_kept(tmp_path, library, monkeypatch):
  (tmp_path / 'file').touch()
  settings = DataConfig(path='hub:openai/gsm8k', cache=f'{tmp_path}/file')
  with pytest.raises(ConfigError, match=r'cannot be written .*data\.cache=DIR'):
    builders.source(settings, 'train')
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', '~/x')
  settings = DataConfig(path='hub:openai/gsm8k', cache=str(tmp_path))
  with pytest.raises(ConfigError, match='set HF_HOME=DIR'):
    builders.source(settings, 'train')
  assert not library
