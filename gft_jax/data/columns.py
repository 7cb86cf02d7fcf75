"""Which column of a file holds the prompt, the answer and the solutions.

A column is named per role (`data.columns`), or guessed from NAMES; a dot leads
into a nested column.
"""

import itertools
import pathlib
from collections.abc import Iterator

from gft_jax.answers import MARK
from gft_jax.config import nearest, require
from gft_jax.data import files

ROLES = ('prompt', 'answer', 'expert', 'teacher', 'messages')
# Names that are taken for a role, the likeliest first. The dotted ones are the
# columns of verl, to which the official code adds the teachers (ZJU-OmniAI/GFT
# at 763384d, verl/utils/dataset/rl_dataset.py:299).
NAMES = {
  'prompt': ('prompt', 'question', 'problem', 'input'),
  'answer': ('answer', 'final_answer', 'target', 'reward_model.ground_truth'),
  'expert': (
    'expert',
    'solution',
    'completion',
    'response',
    'extra_info.answer',
  ),
  'teacher': ('teacher', 'model_answer', 'extra_info.model_answer'),
  'messages': ('messages',),
}


def column_map(path: pathlib.Path, columns: str) -> dict[str, str]:
  """The column of each role in a file; a role without a column is absent.

  Args:
    path: a .jsonl, .json, .csv or .parquet file.
    columns: 'prompt=question,expert=answer', or empty to guess.

  Raises:
    ConfigError: no such file, role or column, or no column for the prompt or
      for both the answer and the expert.
  """
  files.check_exists(path)
  first: dict[str, object] = {}
  why = ''
  for number, raw in itertools.islice(files.raw_rows(path), files.FIRST_ROWS):
    if isinstance(raw, files.BadRow):
      why = why or f' that can be read; row {number} {raw}'
    else:
      for name, value in _nested(raw):
        first.setdefault(name, value)
  require(bool(first), f'{path} has no rows{why}')
  found = _named(columns, first, path) if columns else _guessed(first)
  present = ', '.join(first)
  whole = 'messages' in found
  require(
    not (whole and {'prompt', 'expert'} & found.keys()),
    'data.columns: messages holds the prompt and the expert; name no others',
  )
  require(
    whole or 'prompt' in found,
    f'{path}: no column for the prompt among {present};'
    ' set data.columns=prompt=NAME',
  )
  require(
    whole or 'answer' in found or 'expert' in found,
    f'{path}: no column for the answer among {present};'
    ' set data.columns=prompt=NAME,answer=NAME',
  )
  return found


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
    require(
      role not in found,
      f'data.columns names the role {role} twice: {found.get(role)!r} and'
      f' {name!r}; a role has one column',
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
    if MARK in str(files.decoded(first[found['answer']])):
      found['expert'] = found.pop('answer')
  # NuminaMath-CoT has its two columns in a conversation once more.
  both = 'prompt' in found and ('answer' in found or 'expert' in found)
  for role in ('messages',) if both else ('prompt', 'expert'):
    if 'messages' in found:
      found.pop(role, None)
  return found


def _nested(raw: dict, prefix: str = '') -> Iterator[tuple[str, object]]:
  """Columns and, with dots, what lies in them."""
  for name, value in raw.items():
    yield prefix + name, value
    if isinstance(value, dict):
      yield from _nested(value, f'{prefix}{name}.')
