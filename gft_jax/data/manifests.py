"""Compares data files with a manifest, which says what others' files hold.

third_party/README.md describes the manifest of this project and its fields.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from gft_jax.config import ConfigError
from gft_jax.data import files


class Entry(NamedTuple):
  """One file of a manifest, or the parts of one set.

  Attributes:
    sha256: of the file; None where no copy was at hand.
    rows: of the file, or of the parts together; None where unknown.
  """

  sha256: str | None
  rows: int | None


class Finding(NamedTuple):
  """What became of one entry, or a file that is in none.

  Attributes:
    state: how the files compare with the entry.
    name: of the entry, or the path of an unknown file below the folder.
    differences: in what the files differ from the entry.
    certain: whether a checksum says that they are the same.
  """

  state: Literal['absent', 'differs', 'same', 'unknown']
  name: str
  differences: tuple[str, ...] = ()
  certain: bool = True

  def __str__(self) -> str:
    line = f'{self.state:9}{self.name}'
    if self.differences:
      line += f': {"; ".join(self.differences)}'
    return line if self.certain else f'{line} (no checksum is known)'


def read(path: pathlib.Path) -> dict[str, Entry]:
  """The entries of a manifest: path below a data folder, or a glob -> entry."""
  return {
    name: Entry(fields['sha256'], fields['rows'])
    for name, fields in json.loads(path.read_text()).items()
  }


def compare(
  folder: pathlib.Path, manifest: Mapping[str, Entry]
) -> Iterator[Finding]:
  """Compares each entry, in order, and then names the unknown files.

  Args:
    folder: of data files.
    manifest: of `read`.
  """
  known: set[pathlib.Path] = set()
  for name, entry in manifest.items():
    paths = sorted(folder.glob(name))
    known.update(paths)
    if not paths:
      yield Finding('absent', name)
    elif differences := tuple(_differences(paths, entry)):
      yield Finding('differs', name, differences)
    else:
      yield Finding('same', name, certain=bool(entry.sha256))
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path not in known:
      yield Finding('unknown', str(path.relative_to(folder)))


def _differences(paths: Sequence[pathlib.Path], entry: Entry) -> Iterator[str]:
  """In what the files of one entry differ from it."""
  if entry.sha256:
    with paths[0].open('rb') as content:
      found = hashlib.file_digest(content, 'sha256').hexdigest()
    if found != entry.sha256:
      yield f'sha256 {found}, not {entry.sha256}'
  if entry.rows:
    try:
      rows = sum(1 for path in paths for _ in files.raw_rows(path))
    except ConfigError as error:
      yield str(error)
      return
    if rows != entry.rows:
      yield f'{rows} rows, not {entry.rows}'
