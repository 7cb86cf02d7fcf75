"""Columns of a dataset that a reward takes, carried from its rows to the grader.

They are read from the file itself, so that a prepared dataset holds no more
than prompts and answers, and nothing is read where no reward takes any.
"""

import datetime
import decimal
import json
from collections.abc import Sequence

from gft_jax.data import files, turns
from gft_jax.data.builders import Source
from gft_jax.rewards.functions import NOTHING, TURNS, Wanted


def columns(
  source: Source, wanted: Wanted, numbers: Sequence[int]
) -> list[str]:
  """What a reward takes of some rows, each as a text of JSON.

  A column is one of the file, by its name, or else a role: prompt, answer,
  expert, teacher. A row that lacks a column of the others has null. The turns
  of a prompt that is a conversation are `TURNS`.

  Args:
    source: the split.
    wanted: names of the columns.
    numbers: of the rows.

  Returns:
    A text for each of `numbers`, in their order; nothing where no column is
    taken.

  Raises:
    ConfigError: the reward requires a column that no row has.
  """
  if wanted == NOTHING:
    return []
  rows = {row['row']: row for row in source.rows}
  kept = {number: rows[number] for number in numbers}
  found, present = _read(source, wanted, kept)
  named = wanted._replace(everything=source.file is None)
  roles = [r for r in _roles(source) if r not in present and named.takes(r)]
  names = wanted.names([*present, *roles], source.name)

  def text(number: int) -> str:
    values = kept[number] | found.get(number, {})
    return json.dumps(
      {k: values[k] for k in names if k in values}, default=_plain
    )

  return [text(number) for number in numbers]


def _roles(source: Source) -> list[str]:
  """Roles that a reward may name where no column has that name."""
  given = {'prompt', 'answer', *source.roles}
  if source.file is None or 'messages' in given:
    given |= {'expert'}
  if source.file is None:
    given |= {'teacher'}
  return [
    role for role in ('prompt', 'answer', 'expert', 'teacher') if role in given
  ]


def _read(
  source: Source, wanted: Wanted, kept: dict[int, dict]
) -> tuple[dict[int, dict[str, object]], list[str]]:
  """Row number -> the columns of it that are taken; and all columns there are."""
  found, present = {}, {}
  if source.file is None:
    return found, []
  for number, raw in files.raw_rows(source.file):
    if number in kept and isinstance(raw, dict):
      present |= dict.fromkeys(raw)
      found[number] = {name: raw[name] for name in raw if wanted.takes(name)}
      if wanted.takes(TURNS) and _is_conversation(source.roles, raw):
        one = [{'role': 'user', 'content': kept[number]['prompt']}]
        present[TURNS] = None
        found[number][TURNS] = kept[number].get('prompt_turns', one)
  for columns in found.values():
    for name in present:
      if wanted.takes(name) and name != TURNS:
        columns.setdefault(name, None)
  return found, list(present)


def _is_conversation(roles: dict[str, str], raw: dict) -> bool:
  """Whether the prompt of a row is a list of turns."""
  if 'messages' in roles:
    return True
  value: object = raw
  for part in roles['prompt'].split('.'):
    value = value.get(part) if isinstance(value, dict) else None
  return turns.holds_turns(value)


def _plain(value: object) -> object:
  """What JSON has no word for, of parquet."""
  if isinstance(value, bytes):
    return value.decode(errors='replace')
  if isinstance(value, decimal.Decimal):
    return int(value) if value == value.to_integral_value() else float(value)
  if isinstance(value, datetime.date | datetime.time):
    return value.isoformat()
  return str(value)
