"""Conversations as files have them -> lists of turns {role, content, ...}.

A turn is {role, content} as at OpenAI or {from, value} as in ShareGPT; its
content is a text or a list of parts of text. Further keys (`name`,
`reasoning_content`, `tool_calls`, ...) stay, for the chat template to read.
"""

import json
import re

from gft_jax.data.cells import BadRow, as_json, decoded, text_of

# Who speaks in a conversation.
SPEAKERS = ('system', 'user', 'assistant', 'tool')
# What others call them.
ALIASES = {
  'human': 'user',
  'prompter': 'user',
  'gpt': 'assistant',
  'chatgpt': 'assistant',
  'model': 'assistant',
  'bot': 'assistant',
  'ai': 'assistant',
  'developer': 'system',
}
# Keys of a turn whose values a template writes beside the content.
WRITTEN = ('reasoning_content', 'reasoning', 'thinking', 'tool_calls')
# A list of turns as Python prints it.
PRINTED = re.compile(r"\s*\[\s*\{'(role|from|content|value)'\s*:")

Turn = dict[str, object]


def turns_in(role: str, value: object) -> list | None:
  """The list of turns that a cell holds, unchecked; None where it is a text.

  A cell of CSV may hold the list as JSON, and one turn may stand without its
  list.

  Raises:
    BadRow: a list of turns that was printed by Python.
  """
  value = decoded(value)
  if isinstance(value, list):
    return value
  if isinstance(value, dict) and ({'role', 'from'} & value.keys()):
    return [value]
  if not isinstance(value, str) or not value.lstrip().startswith('['):
    return None
  found = listed(value)
  if isinstance(found, list) and found and _is_turn(found[0]):
    return found
  if PRINTED.match(value):
    raise BadRow(f"{role} is a list of turns in Python's spelling, not in JSON")
  return None


def holds_turns(value: object) -> bool:
  """Whether a cell holds a conversation, or one turn of one."""
  try:
    found = turns_in('', value)
  except BadRow:
    return False
  return bool(found) and _is_turn(found[0])


def _is_turn(value: object) -> bool:
  return isinstance(value, dict) and bool({'role', 'from'} & value.keys())


def last_speaker(value: object) -> object:
  """Who speaks last in a cell that holds turns."""
  return speaker_of((turns_in('', value) or [None])[-1])


def begins_with_user(value: object) -> bool:
  """Whether a cell holds a conversation from its beginning."""
  if not holds_turns(value):
    return False
  return speaker_of((turns_in('', value) or [None])[0]) in ('system', 'user')


def listed(value: object) -> object:
  """The list in a text of JSON, as in a cell of CSV; else the value."""
  value = decoded(value)
  if not isinstance(value, str) or not value.lstrip().startswith('['):
    return value
  try:
    found = json.loads(value)
  except (ValueError, RecursionError):
    return value
  return found if isinstance(found, list) else value


def conversation(role: str, value: object) -> list[Turn]:
  """The turns of a cell, checked.

  Raises:
    BadRow: no list of turns, or a turn that is none (names it).
  """
  if value is None:
    raise BadRow(f'{role} is missing')
  if not isinstance(value, list):
    raise BadRow(f'{role} is a {type(value).__name__}, not a list of turns')
  if not value:
    raise BadRow(f'{role} is empty')
  return [
    _turn(f'{role}: turn {number}', turn)
    for number, turn in enumerate(value, 1)
  ]


def speaker_of(turn: object) -> object:
  """Who speaks, in the names of SPEAKERS where it is known."""
  if not isinstance(turn, dict):
    return None
  name = decoded(turn.get('role') or turn.get('from'))
  if not isinstance(name, str):
    return name
  name = name.strip().lower()
  return ALIASES.get(name, name)


def split(turns: list[Turn]) -> tuple[list[Turn], list[Turn]]:
  """Turns before the first of the assistant, and the others.

  Raises:
    BadRow: no assistant, or none that answers a user.
  """
  speakers = [turn['role'] for turn in turns]
  if 'assistant' not in speakers:
    raise BadRow('messages has no turn of the assistant')
  first = speakers.index('assistant')
  if 'user' not in speakers[:first]:
    raise BadRow('messages: the assistant speaks before the user')
  return turns[:first], turns[first:]


def split_at_difference(
  chosen: list[Turn], rejected: list[Turn]
) -> tuple[list[Turn], list[Turn]]:
  """The turns that two conversations share, and the rest of the first.

  Raises:
    BadRow: they do not differ.
  """
  shared = 0
  for one, other in zip(chosen, rejected):
    if one != other:
      break
    shared += 1
  if shared == len(chosen):
    raise BadRow('has the same turns chosen and rejected')
  return chosen[:shared], chosen[shared:]


def needs_template(turns: list[Turn], speaker: str) -> bool:
  """Whether it is more than one text of this speaker."""
  (first, *others) = turns
  return bool(
    others or first['role'] != speaker or any(key in first for key in WRITTEN)
  )


def _turn(where: str, turn: object) -> Turn:
  if not isinstance(turn, dict):
    raise BadRow(f'{where} is a {type(turn).__name__}, not an object')
  speaker = speaker_of(turn)
  if speaker is None:
    raise BadRow(f'{where} has no role')
  if speaker not in SPEAKERS:
    raise BadRow(
      f'{where} has the role {str(speaker)[:40]!r}, which is not one of'
      f' {", ".join(SPEAKERS)}'
    )
  further = {
    key: as_json(value)
    for key, value in turn.items()
    if key not in ('role', 'content', 'from', 'value')
    and value not in (None, '', b'', [], {})
  }
  if speaker == 'assistant' and further.get('weight', 1) != 1:
    raise BadRow(f'{where} has weight {further["weight"]}; every answer trains')
  content = turn.get('content', turn.get('value'))
  content = _joined(where, content) if isinstance(content, list) else content
  # A call of a tool needs no words, nor has every tool a result to tell.
  silent = 'tool_calls' in further or speaker in ('system', 'tool')
  if silent and decoded(content) in (None, ''):
    text = ''
  else:
    text = text_of(f'{where}: content', content)
  return {'role': speaker, 'content': text, **further}


def _joined(where: str, parts: list) -> object:
  """The text of a content in parts; other parts than text are refused."""
  texts = []
  for part in map(as_json, parts):
    kind = part.get('type', 'text') if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == 'text':
      part = part.get('text')
    elif kind is not None:
      raise BadRow(f'{where}: content has a part of type {kind}, not text')
    texts.append(text_of(f'{where}: content', part))
  return '\n'.join(texts)
