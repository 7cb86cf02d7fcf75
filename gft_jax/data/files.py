"""Group datasets in files: JSONL or parquet -> validated rows.

A row has four roles: prompt and answer (needed), expert (a worked solution) and
teacher (a list of solutions). A column is named per role, or guessed from
NAMES. Where no column holds the answer, it is what follows the last `####` of
the expert's text, the format of GSM8K.
"""

import itertools
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from gft_jax.config import ConfigError, nearest, require

ROLES = ('prompt', 'answer', 'expert', 'teacher')
# Names that are taken for a role, the likeliest first.
NAMES = {
  'prompt': ('prompt', 'question', 'problem', 'input'),
  'answer': ('answer', 'final_answer', 'target'),
  'expert': ('expert', 'solution', 'completion', 'response'),
  'teacher': ('teacher', 'model_answer'),
}
MARK = '####'
# Rows of JSONL whose keys are the columns of the file.
ROWS_FOR_COLUMNS = 1000


class BadRow(ValueError):
  """Why one row of a file cannot be used."""


def check_exists(path: pathlib.Path) -> None:
  """Raises ConfigError, with the nearest name, if there is no such file."""
  require(not path.is_dir(), f'data file {path} is a folder; name a file in it')
  require(
    path.is_file(),
    f'data file {path} does not exist'
    + nearest(path.name, _siblings(path.parent)),
  )


def column_map(path: pathlib.Path, columns: str) -> dict[str, str]:
  """The column of each role in a file; a role without a column is absent.

  Args:
    path: a .jsonl or .parquet file.
    columns: 'prompt=question,expert=answer', or empty to guess.

  Raises:
    ConfigError: no such file, role or column, or no column for the prompt or
      for both the answer and the expert.
  """
  check_exists(path)
  first: dict[str, Any] = {}
  why = ''
  for number, raw in itertools.islice(raw_rows(path), ROWS_FOR_COLUMNS):
    if isinstance(raw, BadRow):
      why = why or f' that can be read; row {number} {raw}'
    for name, value in raw.items() if isinstance(raw, dict) else ():
      first.setdefault(name, value)
  require(bool(first), f'{path} has no rows{why}')
  found = _named(columns, first, path) if columns else _guessed(first)
  present = ', '.join(first)
  require(
    'prompt' in found,
    f'{path}: no column for the prompt among {present};'
    ' set data.columns=prompt=NAME',
  )
  require(
    'answer' in found or 'expert' in found,
    f'{path}: no column for the answer among {present};'
    ' set data.columns=prompt=NAME,answer=NAME',
  )
  return found


def rows(
  path: pathlib.Path, columns: dict[str, str]
) -> Iterator[tuple[int, dict | BadRow]]:
  """Yields (row number from 1, row or the reason why it is bad).

  Args:
    path: a .jsonl or .parquet file; blank lines of JSONL are not rows.
    columns: role -> column, of `column_map`.

  Raises:
    ConfigError: the file as a whole cannot be read.
  """
  for number, raw in raw_rows(path):
    try:
      yield number, _row(raw, columns)
    except BadRow as bad:
      yield number, bad


def final_answer(expert: str) -> str:
  """What follows the last `####`, without the commas of thousands.

  Raises:
    BadRow: there is no mark.
  """
  _, mark, answer = expert.rpartition(MARK)
  if not mark:
    raise BadRow(f'expert has no {MARK} and there is no answer column')
  return answer.strip().replace(',', '')


def _siblings(folder: pathlib.Path) -> list[str]:
  return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def _named(columns: str, first: dict, path: pathlib.Path) -> dict[str, str]:
  found = {}
  for pair in columns.split(','):
    role, _, name = (part.strip() for part in pair.partition('='))
    require(
      role in ROLES and bool(name),
      f'data.columns: {pair!r} is not role=column with a role among'
      f' {", ".join(ROLES)}' + nearest(role, ROLES),
    )
    require(
      name in first,
      f'{path}: no column {name!r}; columns: {", ".join(first)}'
      + nearest(name, first),
    )
    found[role] = name
  return found


def _guessed(first: dict) -> dict[str, str]:
  found = {
    role: next(name for name in names if name in first)
    for role, names in NAMES.items()
    if any(name in first for name in names)
  }
  # GSM8K calls the worked solution its answer.
  if 'answer' in found and 'expert' not in found:
    if MARK in str(decoded(first[found['answer']])):
      found['expert'] = found.pop('answer')
  return found


def raw_rows(path: pathlib.Path) -> Iterator[tuple[int, dict | BadRow]]:
  require(
    path.suffix in _READERS,
    f'data file {path} is neither {" nor ".join(_READERS)}',
  )
  return _READERS[path.suffix](path)


def _raw_jsonl(path: pathlib.Path) -> Iterator[tuple[int, dict | BadRow]]:
  number = 0
  with path.open('rb') as lines:
    for line in lines:
      if line.strip():
        number += 1
        yield number, _parsed(line)


def _parsed(line: bytes) -> dict | BadRow:
  try:
    # A file from Windows may begin with a byte order mark.
    raw = json.loads(line.decode('utf-8-sig'), object_pairs_hook=_unique)
  except BadRow as bad:
    return bad
  except UnicodeDecodeError:
    return BadRow('is not UTF-8')
  except (ValueError, RecursionError):  # also of a number of 5,000 digits
    return BadRow('is not JSON')
  return raw if isinstance(raw, dict) else BadRow('is not a JSON object')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise BadRow(f'has the key {twice!r} twice')
  return found


def _raw_parquet(path: pathlib.Path) -> Iterator[tuple[int, dict]]:
  import pyarrow
  import pyarrow.parquet

  try:
    file = pyarrow.parquet.ParquetFile(path)
  except pyarrow.ArrowException as error:
    why = ' '.join(str(error).split())
    raise ConfigError(f'{path} is not a parquet file: {why}') from error
  names = file.schema_arrow.names
  twice = sorted({name for name in names if names.count(name) > 1})
  require(not twice, f'{path} has several columns {", ".join(twice)}')
  number = 0
  with file:
    for batch in _batches(file, path):
      columns = [_bytes(column).to_pylist() for column in batch.columns]
      for values in zip(*columns):
        number += 1
        yield number, dict(zip(names, values))


def _batches(file, path: pathlib.Path):
  """Record batches; what is damaged inside the file is one line."""
  import pyarrow

  try:
    yield from file.iter_batches()
  except (pyarrow.ArrowException, OSError) as error:
    why = ' '.join(str(error).split())
    raise ConfigError(f'{path} is damaged: {why}') from error


def _bytes(column):
  """Text as bytes: what is not UTF-8 then spoils its row, not the file."""
  import pyarrow

  kind = column.type
  if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
    return column.cast(pyarrow.binary())
  if pyarrow.types.is_list(kind) and pyarrow.types.is_string(kind.value_type):
    return column.cast(pyarrow.list_(pyarrow.binary()))
  return column


def _row(raw: dict | BadRow, columns: dict[str, str]) -> dict:
  if isinstance(raw, BadRow):
    raise raw
  row = {role: raw.get(name) for role, name in columns.items()}
  expert = _text('expert', row['expert']) if 'expert' in row else ''
  if 'answer' in row:
    answer = _text('answer', number_as_text(row['answer']))
  else:
    answer = _text('answer', final_answer(expert))
  teacher = [] if row.get('teacher') is None else row['teacher']
  if not isinstance(teacher, list):
    raise BadRow(f'teacher is a {type(teacher).__name__}, not a list')
  return {
    'prompt': _text('prompt', row['prompt']),
    'answer': answer,
    'expert': expert,
    'teacher': [_text('teacher', text) for text in teacher],
  }


def _text(role: str, value: Any) -> str:
  value = decoded(value)
  if value is None:
    raise BadRow(f'{role} is missing')
  if isinstance(value, float) and not math.isfinite(value):
    raise BadRow(f'{role} is {value}, not text')
  if not isinstance(value, str):
    raise BadRow(f'{role} is a {type(value).__name__}, not text')
  if not value.strip():
    raise BadRow(f'{role} is empty')
  try:
    value.encode()
  except UnicodeEncodeError:
    raise BadRow(f'{role} is not UTF-8') from None
  return value


def decoded(value: Any) -> Any:
  """Text of bytes; what is not UTF-8 stays recognisable as such."""
  if not isinstance(value, bytes):
    return value
  try:
    return value.decode()
  except UnicodeDecodeError:
    # The encoding that `_text` refuses; `rows` must not stop here.
    return value.decode(errors='surrogateescape')


def number_as_text(value: Any) -> Any:
  """Text of a finite number; anything else as it is."""
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return value
  return str(value) if abs(value) < math.inf else value  # NaN is not


_READERS = {'.jsonl': _raw_jsonl, '.parquet': _raw_parquet}
