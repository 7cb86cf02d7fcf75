"""Group datasets in files: JSONL, JSON, CSV or parquet -> validated rows.

A row has a prompt, a reference answer for the grader, an expert's solution and
teachers' solutions, or `messages`: a whole conversation, whose turns up to the
first of the assistant are the prompt and whose others are the expert's. A
prompt and an expert may be lists of turns, too; see `turns`. `columns` says
which column is which. Where no column holds the answer, it is read from the
expert's text; see `final_answer`.
"""

import codecs
import contextlib
import csv
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Iterator

from gft_jax.answers import MARK, in_tag, last_boxed
from gft_jax.config import ConfigError, check_local, nearest, require
from gft_jax.data import turns
from gft_jax.data.cells import (
  BadRow,
  answer_of,
  as_json,
  decoded,
  number_as_text,
  text_of,
)
from gft_jax.thoughts import without_thoughts

__all__ = [
  'BadRow',
  'check_exists',
  'decoded',
  'final_answer',
  'number_as_text',
  'raw_rows',
  'rows',
  'talks',
  'text_of',
]

# Rows that tell which columns a file has, and whether they hold conversations.
FIRST_ROWS = 1000
# What a row has of a conversation; see `rows`.
TURNS = frozenset({'prompt_turns', 'expert_turns', 'tools'})
# Columns of what is no text; a row that has some cannot be used.
MEDIA = ('image', 'images', 'video', 'videos', 'audio', 'audios')
# A list of texts as Python prints it.
PRINTED = re.compile(r"""\s*\[\s*['"].*['"]\s*\]\s*""", re.DOTALL)


def check_exists(path: pathlib.Path, what: str = 'data file') -> None:
  """Raises ConfigError, with the nearest name, if there is no such file."""
  check_local(path, 'file', f'{what} ')
  require(not path.is_dir(), f'{what} {path} is a folder; name a file in it')
  require(
    path.is_file(),
    f'{what} {path} does not exist'
    + nearest(path.name, _siblings(path.parent)),
  )


def rows(
  path: pathlib.Path, columns: dict[str, str], asked_only: bool = False
) -> Iterator[tuple[int, dict | BadRow]]:
  """Yields (row number from 1, row or the reason why it is bad).

  A row has `prompt` (where it is a conversation: the user's last turn),
  `answer` ('' where there is no column and the expert states none), `expert`
  ('' where there is none; of several turns the last) and `teacher`, a list. It
  has `prompt_turns` where more is asked than one text of a user, and
  `expert_turns` where the expert says more than one text: lists of {role,
  content} with the further keys of a turn. It has `tools` where there are some,
  a list of objects, and `left_out` where a teacher cannot be used: the reason
  of each.

  Args:
    path: a .jsonl, .json, .csv or .parquet file; blank lines are not rows.
    columns: role -> column, of `columns.column_map`.
    asked_only: the rows are asked and graded, so that one without an expert is
      not bad.

  Raises:
    ConfigError: the file as a whole cannot be read.
  """
  for number, raw in raw_rows(path):
    try:
      yield number, _row(raw, columns, asked_only)
    except BadRow as bad:
      yield number, bad


def talks(
  path: pathlib.Path, columns: dict[str, str], asked_only: bool = False
) -> bool:
  """Whether the first rows of a file hold conversations; see `rows`."""
  first = itertools.islice(rows(path, columns, asked_only), FIRST_ROWS)
  return any(isinstance(row, dict) and TURNS & row.keys() for _, row in first)


def final_answer(expert: str) -> str:
  r"""What a worked solution states as its answer, or ''.

  Thoughts are left out. It is what stands in <answer>...</answer>, else the line
  after `####` if that ends the text, without the commas of thousands (GSM8K),
  else the content of the last balanced \boxed{...} (MATH, NuminaMath). A `####`
  before further lines is a heading of Markdown.
  """
  expert = without_thoughts(expert) or ''
  tagged = in_tag(expert)
  if tagged is not None:
    return tagged
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
  suffix = path.suffix.lower()
  require(
    suffix in _READERS,
    f'data file {path} is neither {" nor ".join(_READERS)}',
  )
  return _READERS[suffix](path)


def _raw_jsonl(path: pathlib.Path) -> Iterator[tuple[int, dict | BadRow]]:
  """An object a line; also a file that is one list, whatever it is called."""
  if _begins(path) == b'[':
    raw = _loaded(path.read_bytes())
    if isinstance(raw, list) and raw and isinstance(raw[0], dict):
      return enumerate(map(_object, raw), 1)
  return _lines(path)


def _lines(path: pathlib.Path) -> Iterator[tuple[int, dict | BadRow]]:
  number = 0
  with path.open('rb') as lines:
    for line in lines:
      if line.removeprefix(codecs.BOM_UTF8).strip():
        number += 1
        yield number, _parsed(line)


def _raw_json(path: pathlib.Path) -> Iterator[tuple[int, dict | BadRow]]:
  """A list of objects; also an object a line."""
  raw = _loaded(path.read_bytes())
  if isinstance(raw, list):
    return enumerate(map(_object, raw), 1)
  if isinstance(raw, BadRow) and _is_jsonl(path):
    return _lines(path)
  if isinstance(raw, BadRow):
    raise ConfigError(f'{path} {raw}')
  raise ConfigError(
    f'{path} is not a list of JSON objects, nor an object on each line'
  )


def _begins(path: pathlib.Path) -> bytes:
  """The first byte that is no space."""
  with path.open('rb') as file:
    for line in file:
      if text := line.removeprefix(codecs.BOM_UTF8).strip():
        return text[:1]
  return b''


def _is_jsonl(path: pathlib.Path) -> bool:
  """Whether one of the first lines is a whole object."""
  first = itertools.islice(_lines(path), FIRST_ROWS)
  return any(isinstance(raw, dict) for _, raw in first)


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


def _row(raw: dict | BadRow, columns: dict[str, str], asked_only: bool) -> dict:
  if isinstance(raw, BadRow):
    raise raw
  for name in MEDIA:
    if raw.get(name):
      raise BadRow(f'has {name}, and only text is read')
  row = {
    role: _value(raw, name)
    for role, name in columns.items()
    if role != 'teacher'
  }
  asked, given = _asked_and_given(row)
  prompt, prompt_turns = _prompt(asked, row.get('input'), row.get('system'))
  expert, expert_turns = '', []
  if _is_there(given) or not _may_lack_expert(row, asked_only):
    # An expert that cannot be read is no loss where nobody trains on it.
    unread = (BadRow,) if asked_only and 'answer' in row else ()
    with contextlib.suppress(*unread):
      expert, expert_turns = _expert('expert', given, asked)
  answer = answer_of(row['answer']) if 'answer' in row else ''
  teacher, left_out = _teachers(raw, columns.get('teacher', ''), asked)
  found: dict = {
    'prompt': prompt,
    'answer': answer or final_answer(expert),
    'expert': expert,
    'teacher': teacher,
  }
  for name, value in (
    ('prompt_turns', prompt_turns),
    ('expert_turns', expert_turns),
    ('tools', _tools(row.get('tools'))),
    ('left_out', left_out),
  ):
    if value:
      found[name] = value
  return found


def _asked_and_given(row: dict) -> tuple[object, object]:
  """What is asked and what the expert says: a text or turns, else None."""
  if 'messages' not in row:
    return row['prompt'], row.get('expert')
  whole = turns.conversation('messages', turns.listed(row['messages']))
  if 'rejected' in row:
    rejected = turns.conversation('rejected', turns.listed(row['rejected']))
    return turns.split_at_difference(whole, rejected)
  if 'answer' in row and whole[-1]['role'] == 'user':
    return whole, None  # A question, and how it is graded.
  return turns.split(whole)


def _may_lack_expert(row: dict, asked_only: bool) -> bool:
  """Whether a row without an expert can be used."""
  if 'messages' in row:
    return True  # It ends with the user, and has an answer.
  return 'expert' not in row or (asked_only and 'answer' in row)


def _prompt(
  value: object, further: object, system: object
) -> tuple[str, list[turns.Turn]]:
  """What the user asks last, and all turns where there are others."""
  asked: list[turns.Turn] = _asked(value)
  if asked[-1]['role'] != 'user':
    raise BadRow(f'prompt ends with the {asked[-1]["role"]}, not the user')
  content = str(asked[-1]['content'])
  if _is_there(further):
    content = f'{content}\n\n{text_of("input", number_as_text(further))}'
    asked = [*asked[:-1], {**asked[-1], 'content': content}]
  if _is_there(system) and asked[0]['role'] != 'system':
    asked = [{'role': 'system', 'content': text_of('system', system)}, *asked]
  return content, asked if turns.needs_template(asked, 'user') else []


def _asked(value: object) -> list[turns.Turn]:
  """The turns of a prompt, checked; a text is one turn of a user."""
  asked = turns.turns_in('prompt', value)
  if asked is None:
    return [{'role': 'user', 'content': text_of('prompt', value)}]
  return turns.conversation('prompt', asked)


def _is_there(value: object) -> bool:
  value = decoded(value)
  return bool(value.strip() if isinstance(value, str) else value is not None)


def _expert(
  role: str, value: object, asked: object
) -> tuple[str, list[turns.Turn]]:
  """What is said last, and all turns where there are others."""
  said = turns.turns_in(role, value)
  if said is None:
    return text_of(role, value), []
  said = turns.conversation(role, said)
  if said[0]['role'] != 'assistant':
    said = said[_repeated(said, asked) :]
  if not said:
    raise BadRow(f'{role} repeats the prompt and says nothing')
  for turn, place in ((said[0], 'begins'), (said[-1], 'ends')):
    if turn['role'] != 'assistant':
      raise BadRow(f'{role} {place} with the {turn["role"]}, not the assistant')
  content = str(said[-1]['content'])
  if not content:
    raise BadRow(f'{role} ends with a call of a tool, not with an answer')
  return content, said if turns.needs_template(said, 'assistant') else []


def _repeated(said: list[turns.Turn], asked: object) -> int:
  """How many turns of the expert are the prompt once more."""
  question = _asked(asked)
  return len(question) if said[: len(question)] == question else 0


def _tools(value: object) -> list:
  """The tools of a row, which the chat template writes; [] for none."""
  found = as_json(turns.listed(value)) or []
  if not isinstance(found, list) or not all(isinstance(t, dict) for t in found):
    raise BadRow('tools is not a list of JSON objects')
  return found


def _teachers(
  raw: dict, names: str, asked: object
) -> tuple[list[str], list[str]]:
  """Texts of the teachers, and why each of the others is left out."""
  offered, texts, left_out = [], [], []
  for name in filter(None, names.split(',')):
    value = turns.listed(_value(raw, name))
    if isinstance(value, list) and not turns.holds_turns(value):
      offered += value
    elif isinstance(value, str) and PRINTED.fullmatch(value):
      left_out.append("teacher is a list in Python's spelling, not in JSON")
    elif value is not None or ',' in names:
      offered.append(value)  # Of several columns each is one teacher.
  for value in offered:
    try:
      text, several = _expert('teacher', value, asked)
      if several:
        raise BadRow('teacher has several turns, calls or thoughts apart')
      texts.append(text)
    except BadRow as bad:
      left_out.append(str(bad))
  return texts, left_out


_READERS = {
  '.jsonl': _raw_jsonl,
  '.json': _raw_json,
  '.csv': _raw_csv,
  '.parquet': _raw_parquet,
}
