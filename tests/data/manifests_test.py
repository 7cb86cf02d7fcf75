"""third_party/datasets.json says what the files are."""

import hashlib
import json
import pathlib

import pytest

from gft_jax.data import files

MANIFEST = pathlib.Path(__file__).parents[2] / 'third_party/datasets.json'
ENTRIES = json.loads(MANIFEST.read_text())


@pytest.mark.parametrize('name', ENTRIES)
def test_the_manifest_is_true(name, shared):
  entry, path = ENTRIES[name], shared / 'data' / name
  assert hashlib.sha256(path.read_bytes()).hexdigest() == entry['sha256']
  pairs = ','.join(f'{role}={name}' for role, name in entry['roles'].items())
  columns = files.column_map(path, pairs)
  assert columns == entry['roles']
  assert set(columns.values()) <= set(entry['columns'])
  assert sum(1 for _ in files.rows(path, columns)) == entry['rows']


def test_every_checksum_has_its_entry(shared):
  lines = (shared / 'data/SHA256SUMS').read_text().splitlines()
  known = {name: digest for digest, name in (line.split() for line in lines)}
  assert {k: entry['sha256'] for k, entry in ENTRIES.items()} == known
