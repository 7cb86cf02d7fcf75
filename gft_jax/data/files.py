"""Group datasets in files: JSONL, JSON, CSV or parquet -> validated rows.

A row has a prompt, a reference answer for the grader, an expert's solution and
a list of teachers' solutions, or `messages`: a whole conversation, whose turns
up to the first of the assistant are the prompt and whose others are the
expert's. A prompt and an expert may be lists of turns {role, content}, too.
`columns` says which column is which. Where no column holds the answer, it is
read from the expert's text; see `final_answer`.
"""

import csv
import decimal
import itertools
import json
import math
import pathlib
import re
import sys
from collections.abc import Iterator

from gft_jax.answers import MARK, last_boxed
from gft_jax.config import ConfigError, nearest, require

# Rows that tell which columns a file has, and whether they hold conversations.
FIRST_ROWS = 1000
# What a row has of a conversation; see `rows`.
TURNS = frozenset({'prompt_turns', 'expert_turns', 'tools'})
# Who speaks in a conversation.
SPEAKERS = ('system', 'user', 'assistant')
# The longest text of a row, in characters: far beyond any context, and seconds
# of a tokenizer's time.
LONGEST = 4_000_000


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


def rows(
  path: pathlib.Path, columns: dict[str, str]
) -> Iterator[tuple[int, dict | BadRow]]:
  """Yields (row number from 1, row or the reason why it is bad).

  A row has `prompt` (where it is a conversation: the user's last turn),
  `answer` ('' where there is no column and the expert states none), `expert`
  ('' where there is none; of several turns the last) and `teacher`, a list. It
  has `prompt_turns` where more is asked than one turn of a user, and
  `expert_turns` where the expert speaks more than once: lists of {role,
  content}. It has `tools` where the column of that name holds some.

  Args:
    path: a .jsonl, .json, .csv or .parquet file; blank lines are not rows.
    columns: role -> column, of `columns.column_map`.

  Raises:
    ConfigError: the file as a whole cannot be read.
  """
  for number, raw in raw_rows(path):
    try:
      yield number, _row(raw, columns) | _tools(raw)
    except BadRow as bad:
      yield number, bad


def talks(path: pathlib.Path, columns: dict[str, str]) -> bool:
  """Whether the first rows of a file hold conversations; see `rows`."""
  first = itertools.islice(rows(path, columns), FIRST_ROWS)
  return any(isinstance(row, dict) and TURNS & row.keys() for _, row in first)


def final_answer(expert: str) -> str:
  r"""What a worked solution states as its answer, or ''.

  It is the line after `####` if that ends the text, without the commas of
  thousands (GSM8K), else the content of the last balanced \boxed{...} (MATH,
  NuminaMath). A `####` before further lines is a heading of Markdown.
  """
  _, mark, line = expert.rpartition(MARK)
  line = line.strip()
  if mark and '\n' not in line and r'\boxed' not in line:
    return re.sub(r'(?<=\d),(?=\d{3}(?!\d))', '', line)
  return last_boxed(expert) or ''


def _siblings(folder: pathlib.Path) -> list[str]:
  return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def _value(raw: dict, name: str) -> object:
  if name in raw:
    return raw[name]
  value: object = raw
  for part in name.split('.'):
    value = value.get(part) if isinstance(value, dict) else None
  return value


def raw_rows(path: pathlib.Path) -> Iterator[tuple[int, dict | BadRow]]:
  """Yields (row number from 1, the columns as they are or the defect).

  Text of parquet comes as bytes.
  """
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


def _raw_json(path: pathlib.Path) -> Iterator[tuple[int, dict | BadRow]]:
  raw = _loaded(path.read_bytes())
  if isinstance(raw, BadRow):
    raise ConfigError(f'{path} {raw}')
  if not isinstance(raw, list):
    raise ConfigError(f'{path} is not a list of JSON objects')
  return enumerate(map(_object, raw), 1)


def _parsed(line: bytes) -> dict | BadRow:
  return _object(_loaded(line))


def _object(raw: object) -> dict | BadRow:
  expected = isinstance(raw, dict | BadRow)
  return raw if expected else BadRow('is not a JSON object')


def _loaded(text: bytes) -> object:
  try:
    # A file from Windows may begin with a byte order mark.
    return json.loads(text.decode('utf-8-sig'), object_pairs_hook=_unique)
  except BadRow as bad:
    return bad
  except UnicodeDecodeError:
    return BadRow('is not UTF-8')
  except (ValueError, RecursionError):  # also of a number of 5,000 digits
    return BadRow('is not JSON')


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen = set()
    for name, _ in pairs:
      if name in seen:
        raise BadRow(f'has the key {name!r} twice')
      seen.add(name)
  return found


def _raw_csv(path: pathlib.Path) -> Iterator[tuple[int, dict | BadRow]]:
  """Rows under a header; an empty cell is missing."""
  csv.field_size_limit(sys.maxsize)  # `_text` judges the length
  with path.open(
    encoding='utf-8-sig', errors='surrogateescape', newline=''
  ) as lines:
    reader = csv.reader(lines, strict=True)
    try:
      names = next(reader, [])
    except csv.Error as error:
      raise ConfigError(f'{path} has no header of CSV: {error}') from None
    _check_once(names, path)
    number = 0
    while True:
      try:
        cells = next(reader, None)
      except csv.Error as error:
        number += 1
        yield number, BadRow(f'is not CSV: {error}')
        continue
      if cells is None:
        return
      if cells:
        number += 1
        if len(cells) == len(names):
          yield number, {name: cell or None for name, cell in zip(names, cells)}
        else:
          yield (
            number,
            BadRow(f'has {len(cells)} cells for {len(names)} columns'),
          )


def _check_once(names: list[str], path: pathlib.Path) -> None:
  twice = sorted({name for name in names if names.count(name) > 1})
  require(not twice, f'{path} has two columns {", ".join(twice)}')


def _raw_parquet(path: pathlib.Path) -> Iterator[tuple[int, dict]]:
  import pyarrow
  import pyarrow.parquet

  try:
    file = pyarrow.parquet.ParquetFile(path)
  except (pyarrow.ArrowException, OSError) as error:
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
    yield from file.iter_batches(batch_size=FIRST_ROWS)
  except (pyarrow.ArrowException, OSError) as error:
    why = ' '.join(str(error).split())
    raise ConfigError(f'{path} is damaged: {why}') from error


def _bytes(column):
  """Text as bytes: what is not UTF-8 then spoils its row, not the file."""
  kind = _binary(column.type)
  return column if kind == column.type else column.cast(kind)


def _binary(kind):
  """The type with binary in place of text, however deep."""
  import pyarrow

  types = pyarrow.types
  if types.is_string(kind):
    return pyarrow.binary()
  if types.is_large_string(kind):
    return pyarrow.large_binary()
  if types.is_list(kind):
    return pyarrow.list_(_binary(kind.value_type))
  if types.is_large_list(kind):
    return pyarrow.large_list(_binary(kind.value_type))
  if types.is_struct(kind):
    return pyarrow.struct([(part.name, _binary(part.type)) for part in kind])
  return kind


def _row(raw: dict | BadRow, columns: dict[str, str]) -> dict:
  if isinstance(raw, BadRow):
    raise raw
  row = {role: _value(raw, name) for role, name in columns.items()}
  if 'messages' in row:
    asked, given = _halves(_turns('messages', _list(row['messages'])))
  else:
    asked, given = row['prompt'], row.get('expert')
  prompt, prompt_turns = _prompt(asked)
  expert, expert_turns = '', []
  if 'expert' in row or 'messages' in row:
    expert, expert_turns = _expert(given)
  if 'answer' in row:
    answer = text_of('answer', number_as_text(row['answer']))
  else:
    answer = final_answer(expert)
  teacher = [] if row.get('teacher') is None else _list(row['teacher'])
  if not isinstance(teacher, list):
    raise BadRow(f'teacher is a {type(teacher).__name__}, not a list')
  found: dict = {
    'prompt': prompt,
    'answer': answer,
    'expert': expert,
    'teacher': [text_of('teacher', text) for text in teacher],
  }
  if prompt_turns:
    found['prompt_turns'] = prompt_turns
  if expert_turns:
    found['expert_turns'] = expert_turns
  return found


def _tools(raw: dict | BadRow) -> dict:
  """The tools of a row, a list or its JSON, which the chat template writes."""
  value = None if isinstance(raw, BadRow) else _text_in(raw.get('tools'))
  if isinstance(value, str):
    value = _loaded(value.encode(errors='surrogateescape'))
  if not value:
    return {}
  if not isinstance(value, list) or not all(isinstance(t, dict) for t in value):
    raise BadRow('tools is not a list of JSON objects')
  return {'tools': value}


def _text_in(value: object) -> object:
  """A nested value with text in place of the bytes of parquet."""
  if isinstance(value, list):
    return [_text_in(item) for item in value]
  if isinstance(value, dict):
    return {name: _text_in(item) for name, item in value.items()}
  return decoded(value)


def _prompt(value: object) -> tuple[str, list[dict]]:
  """What the user asks last, and all turns where there are others."""
  if not isinstance(value, list):
    return text_of('prompt', value), []
  turns = _turns('prompt', value)
  if turns[-1]['role'] != 'user':
    raise BadRow(f'prompt ends with the {turns[-1]["role"]}, not the user')
  return turns[-1]['content'], turns if len(turns) > 1 else []


def _expert(value: object) -> tuple[str, list[dict]]:
  """What the expert says last, and all turns where there are others."""
  if not isinstance(value, list):
    return text_of('expert', value), []
  turns = _turns('expert', value)
  for turn, place in ((turns[0], 'begins'), (turns[-1], 'ends')):
    if turn['role'] != 'assistant':
      raise BadRow(f'expert {place} with the {turn["role"]}, not the assistant')
  return turns[-1]['content'], turns if len(turns) > 1 else []


def _halves(turns: list[dict]) -> tuple[list[dict], list[dict]]:
  """Turns before the first of the assistant, and the others."""
  speakers = [turn['role'] for turn in turns]
  if 'assistant' not in speakers:
    raise BadRow('messages has no turn of the assistant')
  first = speakers.index('assistant')
  if 'user' not in speakers[:first]:
    raise BadRow('messages: the assistant speaks before the user')
  return turns[:first], turns[first:]


def _turns(role: str, value: object) -> list[dict]:
  """A conversation of {role, content}, checked; other keys are left out."""
  if value is None:
    raise BadRow(f'{role} is missing')
  if not isinstance(value, list):
    raise BadRow(f'{role} is a {type(value).__name__}, not a list of turns')
  if not value:
    raise BadRow(f'{role} is empty')
  turns = []
  for number, turn in enumerate(value, 1):
    where = f'{role}: turn {number}'
    if not isinstance(turn, dict):
      raise BadRow(f'{where} is a {type(turn).__name__}, not an object')
    speaker = decoded(turn.get('role'))
    if speaker is None:
      raise BadRow(f'{where} has no role')
    if speaker not in SPEAKERS:
      raise BadRow(
        f'{where} has the role {str(speaker)[:40]!r}, which is not one of'
        f' {", ".join(SPEAKERS)}'
      )
    content = text_of(f'{where}: content', turn.get('content'))
    turns.append({'role': speaker, 'content': content})
  return turns


def _list(value: object) -> object:
  """The list in a text of JSON, as in a cell of CSV; else the value."""
  value = decoded(value)
  if not isinstance(value, str) or not value.startswith('['):
    return value
  found = _loaded(value.encode(errors='surrogateescape'))
  return found if isinstance(found, list) else value


def text_of(role: str, value: object) -> str:
  """The text of a cell; raises BadRow where there is none."""
  value = decoded(value)
  if value is None:
    raise BadRow(f'{role} is missing')
  if isinstance(value, float) and not math.isfinite(value):
    raise BadRow(f'{role} is {value}, not text')
  if not isinstance(value, str):
    raise BadRow(f'{role} is a {type(value).__name__}, not text')
  if not value.strip():
    raise BadRow(f'{role} is empty')
  if len(value) > LONGEST:
    raise BadRow(f'{role} is longer than {LONGEST:,} characters')
  try:
    value.encode()
  except UnicodeEncodeError:
    raise BadRow(f'{role} is not UTF-8') from None
  return value


def decoded(value: object) -> object:
  """Text of bytes; what is not UTF-8 stays recognisable as such."""
  if not isinstance(value, bytes):
    return value
  try:
    return value.decode()
  except UnicodeDecodeError:
    # The encoding that `_text` refuses; `rows` must not stop here.
    return value.decode(errors='surrogateescape')


def number_as_text(value: object) -> object:
  """Text of a finite number; anything else as it is."""
  if isinstance(value, decimal.Decimal):
    whole = value == value.to_integral_value()
    return number_as_text(int(value) if whole else float(value))
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return value
  return str(value) if abs(value) < math.inf else value  # NaN is not


_READERS = {
  '.jsonl': _raw_jsonl,
  '.json': _raw_json,
  '.csv': _raw_csv,
  '.parquet': _raw_parquet,
}
