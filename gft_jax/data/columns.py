"""Which column of a file holds the prompt, the answer and the solutions.

A column is named per role (`data.columns`), or guessed from NAMES; a dot leads
into a nested column. A role that is named leaves the others to be guessed.
"""

import difflib
import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

from gft_jax.answers import MARK
from gft_jax.config import nearest, require
from gft_jax.data import files, turns

ROLES = (
  *('prompt', 'answer', 'expert', 'teacher', 'messages'),
  *('input', 'system', 'tools'),
)
# Names that are taken for a role, the likeliest first, in any case and with
# spaces or hyphens for underscores. The dotted ones are the columns of verl, to
# which the official code adds the teachers (ZJU-OmniAI/GFT at 763384d,
# verl/utils/dataset/rl_dataset.py:299).
NAMES = {
  'prompt': ('prompt', 'question', 'problem', 'instruction', 'input', 'query'),
  # What an instruction is about, in Alpaca's and Dolly's columns.
  'input': ('input', 'context'),
  'system': ('system', 'system_prompt'),
  'answer': (
    'ground_truth',
    'reward_model.ground_truth',
    'final_answer',
    'answer',
    'target',
  ),
  'expert': (
    'expert',
    'solution',
    'completion',
    'response',
    'output',
    'chosen',
    'extra_info.answer',
    'target',
  ),
  'teacher': (
    'teacher',
    'teachers',
    'model_answer',
    'extra_info.model_answer',
  ),
  'messages': ('messages', 'conversations', 'conversation', 'chosen'),
  'tools': ('tools',),
}
# One column for each teacher.
NUMBERED = re.compile(r'(?:teacher|model_answer)_?\d+')

Values = dict[str, object]
Roles = dict[str, str]


def column_map(
  path: pathlib.Path, columns: str, asked_only: bool = False
) -> dict[str, str]:
  """The column of each role in a file; a role without a column is absent.

  Several teachers are one text of names with commas. `rejected` is the other
  half of preferences whose two sides are whole conversations.

  Args:
    path: a .jsonl, .json, .csv or .parquet file.
    columns: 'prompt=question,expert=answer'; what is not named is guessed, and
      'teacher=' says that no column has this role.
    asked_only: the rows are asked and graded: a column of experts or teachers
      that is named and not there is no mistake.

  Raises:
    ConfigError: no such file, role or column, or no column for the prompt or
      for both the answer and the expert.
  """
  return choose(path, first_values(path), columns, asked_only)


def first_values(path: pathlib.Path) -> Values:
  """Columns and, with dots, what lies in them -> the first value, or None.

  Raises:
    ConfigError: no such file, or no row that can be read.
  """
  files.check_exists(path)
  first: Values = {}
  why = ''
  for number, raw in itertools.islice(files.raw_rows(path), files.FIRST_ROWS):
    if isinstance(raw, files.BadRow):
      why = why or f' that can be read; row {number} {raw}'
    else:
      for name, value in _nested(raw):
        if first.get(name) is None:
          first[name] = value
  require(bool(first), f'{path} has no rows{why}')
  return first


def choose(
  path: pathlib.Path, first: Values, columns: str, asked_only: bool = False
) -> dict[str, str]:
  """`column_map` of a file whose first values are known."""
  named, unknown = _named(columns, first)
  if asked_only:
    for role in ('expert', 'teacher', 'messages'):
      unknown.pop(role, None)
  found = _guessed(first, {**named, **dict.fromkeys(unknown, '')})
  whole = 'messages' in found
  require(
    not (whole and {'prompt', 'expert'} & found.keys()),
    'data.columns: messages holds the prompt and the expert; name no others',
  )
  known = found.keys() | unknown.keys()
  missing = [
    role
    for role, one_of in (
      ('prompt', {'prompt'}),
      ('answer', {'answer', 'expert'}),
    )
    if not whole and not one_of & known
  ]
  fault = _fault(first, unknown, missing, found)
  require(not fault, f'{path}: {fault}')
  require(
    not isinstance(first.get('label'), bool)
    or 'expert' not in found
    or 'expert' in named,
    f'{path}: the column label says which answers are good, so not every one is'
    " an expert's; keep the good ones and set data.columns=expert=NAME",
  )
  return found


def unused(first: Values, columns: dict[str, str]) -> list[str]:
  """Columns, and with dots parts of them, that no role reads."""
  used = _columns_of(columns)

  def lies_in(name: str, whole: str) -> bool:
    return name == whole or name.startswith(f'{whole}.')

  found = []
  for name in first:
    above = name.rpartition('.')[0]
    whole = above if above in first else ''
    # What lies in a column that is not used is not named again.
    if any(lies_in(name, one) or lies_in(one, name) for one in used):
      continue
    if not whole or any(lies_in(one, whole) for one in used):
      found.append(name)
  return found


def _columns_of(roles: Roles) -> set[str]:
  return {name for names in roles.values() for name in names.split(',')}


def _named(columns: str, first: Values) -> tuple[Roles, Roles]:
  """Role -> column where it is there, and where it is not; '' for no column."""
  found: Roles = {}
  unknown: Roles = {}
  for pair in filter(str.strip, columns.split(',')):
    role, equals, name = (part.strip() for part in pair.partition('='))
    require(
      role in ROLES and bool(equals),
      f'data.columns: {pair!r} is not role=column with a role among'
      f' {", ".join(ROLES)}' + nearest(role, ROLES),
    )
    known = {**found, **unknown}
    require(
      role not in known or bool(role == 'teacher' and known[role] and name),
      f'data.columns names the role {role} twice: {known.get(role)!r} and'
      f' {name!r}; a role other than teacher has one column',
    )
    column = _spelled(name, first) if name else ''
    into = unknown if column is None else found
    into[role] = ','.join(filter(None, (into.get(role), column or name)))
  return found, unknown


def _spelled(name: str, names: Iterable[str]) -> str | None:
  """The column of this name: exactly, or but for case and spaces."""
  if name in names:
    return name
  alike = [one for one in names if _plain(one) == _plain(name)]
  return alike[0] if len(alike) == 1 else None


def _plain(name: str) -> str:
  return re.sub(r'[\s-]+', '_', name.strip().lower())


def _fault(
  first: Values, unknown: Roles, missing: list[str], found: Roles
) -> str:
  """One line about all that is wrong, or ''."""
  if not unknown and not missing:
    return ''
  free = [name for name in first if name not in _columns_of(found)]
  absent = [
    (role, name) for role, names in unknown.items() for name in names.split(',')
  ]
  wanted = []  # (role, the nearest column or '')
  for role, names in (*((r, (n,)) for r, n in absent), *_names_of(missing)):
    closest = _closest(names, free)
    free = [name for name in free if name != closest]
    wanted.append((role, closest))
  if ('answer', '') in wanted and 'answer' in missing:
    if expert := _closest(NAMES['expert'], free):
      wanted.remove(('answer', ''))
      wanted.append(('expert', expert))
  guesses = ', '.join(name for _, name in wanted if name)
  present = ', '.join(first)
  parts = []
  if absent:
    parts.append('no column ' + ', '.join(repr(name) for _, name in absent))
  if missing:
    parts.append(f'no column for the {missing[0]} among {present}')
    parts += [f'none for the {role}' for role in missing[1:]]
  line = ', and '.join(parts)
  if not missing:
    line += f'; columns: {present}'
  if {'chosen', 'rejected'} <= first.keys() and 'prompt' in missing:
    line += (
      '; split the prompt off chosen and rejected, into a column of its own'
    )
  if guesses:
    line += f'; did you mean {guesses}?'
  pairs = ','.join(f'{role}={name or "NAME"}' for role, name in wanted)
  return f'{line}{"" if guesses else ";"} set data.columns={pairs}'


def _names_of(roles: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
  return [(role, NAMES[role]) for role in roles]


def _closest(names: Iterable[str], columns: list[str]) -> str:
  """The column whose name is nearest to one of `names`, or ''."""

  def likeness(name: str, column: str) -> float:
    name, column = _plain(name), _plain(column)
    likeness = difflib.SequenceMatcher(None, name, column).ratio()
    return max(likeness, 0.9) if name in column else likeness

  scores = [(likeness(n, column), column) for n in names for column in columns]
  best = max(scores, default=(0, ''))
  return best[1] if best[0] > 0.6 else ''


def _guessed(first: Values, named: Roles) -> Roles:
  """Columns of all roles; `named` has '' where no column is to have one."""
  found = {role: name for role, name in named.items() if name}

  def guess(role: str, fits: Callable[[object], bool] = _is_no_talk) -> None:
    name = _first_of(NAMES[role], first, found, fits)
    if role not in named and name:
      found[role] = name

  if 'messages' not in found:
    guess('prompt', _is_there)
    guess('answer')
    _guess_expert(first, named, found)
    if not {'prompt', 'expert'} & named.keys():
      _guess_conversation(first, named, found)
  else:
    guess('answer')
  if _plain(found.get('prompt', '')) == 'instruction':
    guess('input')
  guess('system')
  guess('tools', _is_there)
  guess('teacher', _is_there)
  if 'teacher' not in named:
    taken = _columns_of(found)
    several = [
      name
      for name in first
      if NUMBERED.fullmatch(_plain(name)) and name not in taken
    ]
    if names := [*filter(None, (found.get('teacher'),)), *several]:
      found['teacher'] = ','.join(names)
  return found


def _first_of(
  names: Iterable[str],
  first: Values,
  found: Roles,
  fits: Callable[[object], bool],
) -> str:
  """The first of these names whose column is free and fits, or ''.

  A column without any value is taken where no other is there.
  """
  taken = _columns_of(found)
  columns = [
    column
    for name in names
    if (column := _spelled(name, first)) and column not in taken
  ]
  full = [one for one in columns if first[one] is not None and fits(first[one])]
  empty = [one for one in columns if first[one] is None]
  return next(iter((*full, *empty)), '')


def _guess_expert(first: Values, named: Roles, found: Roles) -> None:
  if 'expert' in named:
    return
  *names, last = NAMES['expert']
  answer = found.get('answer', '')
  expert = _first_of(names, first, found, _is_there)
  # GSM8K calls the worked solution its answer.
  if not expert and answer and 'answer' not in named:
    if MARK in str(files.decoded(first[answer])):
      expert = found.pop('answer')
      found['expert'] = expert
      answer = _first_of(NAMES['answer'], first, found, _is_no_talk)
      if answer:
        found['answer'] = answer
  expert = expert or _first_of([last], first, found, _is_there)
  if expert:
    found['expert'] = expert


def _guess_conversation(first: Values, named: Roles, found: Roles) -> None:
  """Takes a column of conversations for what it holds."""
  talk = _first_of(NAMES['messages'], first, found, turns.holds_turns)
  talk = talk if 'messages' not in named and first.get(talk) else ''
  if talk and turns.last_speaker(first[talk]) == 'user':
    found.setdefault('prompt', talk)
  # NuminaMath-CoT has its two columns in a conversation once more.
  elif talk and not {'prompt', 'expert'} <= found.keys():
    found.pop('prompt', None)
    found.pop('expert', None)
    found['messages'] = talk
  elif 'prompt' not in found and turns.begins_with_user(
    first.get(found.get('expert', ''))
  ):
    found['messages'] = found.pop('expert')
    if rejected := _spelled('rejected', first):
      found['rejected'] = rejected


def _is_there(value: object) -> bool:
  return value is not None


def _is_no_talk(value: object) -> bool:
  return not turns.holds_turns(value)


def _nested(raw: dict, prefix: str = '') -> Iterator[tuple[str, object]]:
  """Columns and, with dots, what lies in them."""
  for name, value in raw.items():
    yield prefix + name, value
    if isinstance(value, dict):
      yield from _nested(value, f'{prefix}{name}.')
