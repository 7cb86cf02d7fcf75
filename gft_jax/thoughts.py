"""The thoughts of an answer: the marks around them, and what stands between."""

import re
from collections.abc import Mapping
from typing import NamedTuple

# What opens or closes thoughts: <think>, [/THINK], <|begin_of_thought|>.
THOUGHT = re.compile(
  r'[<\[◁][^\s<>\[\]◁▷]*(?:think|thought|reason)[^\s<>\[\]◁▷]*[>\]▷]',
  re.IGNORECASE,
)
# The same inside of an answer, where other words in brackets are no marks; and
# the channels of gpt-oss, whose last one is the answer.
_THINKING = (
  r'(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflections?|scratch_?pad)'
)
_MARK = re.compile(
  rf"""
  [<◁\[](?:
    (?P<opens>
      (?<=<)\|?(?:seed:|(?:begin|start)_(?:of_)?)?(?:{_THINKING}|working_out)\|?>
      | (?<=◁)think▷
      | (?<=\[)(?-i:THINK)\]
      | (?<=<)\|channel\|>(?:analysis|commentary)\b[^<>]{{0,80}}<\|message\|>)
    | (?<=<)(?:/(?:seed:)?|\|/|\|?end_(?:of_)?)(?:{_THINKING}|working_out)\|?>
    | (?<=◁)/think▷
    | (?<=\[)/(?-i:THINK)\]
    | (?<=<)\|channel\|>final\b[^<>]{{0,80}}<\|message\|>
  )""",
  re.IGNORECASE | re.VERBOSE,
)
# Where a turn has its thoughts apart from its words.
REASONING = ('reasoning_content', 'reasoning', 'thinking')


class Thoughts(NamedTuple):
  """A turn in parts; `mark` opens the thoughts in its content, or is ''."""

  mark: str
  thoughts: str
  words: str


def open_thought(text: str) -> str:
  r"""The mark at the end of a text that opens thoughts, or ''.

  Such as '<think>\n', by which the template of a thinking model calls for an
  answer, with the space behind it.
  """
  bare = text.rstrip()
  start = max(map(bare.rfind, '<[◁'))
  mark = bare[start:] if start >= 0 else ''
  return text[start:] if is_thought(mark) and _opens(mark) else ''


def thought_at_start(text: str) -> str:
  """The mark at the start of a text that opens thoughts, or ''.

  With the space around it.
  """
  found = re.match(r'\s*(\S{1,64}?[>\]▷])\s*', text)
  if found and is_thought(found[1]) and _opens(found[1]):
    return found[0]
  return ''


def is_thought(mark: str) -> bool:
  """Whether a token or tag opens or closes thoughts."""
  return THOUGHT.fullmatch(mark) is not None


def closed_thought(mark: str) -> str:
  """The mark that closes what `mark` opens: </think> of <think>."""
  mark = mark.strip()
  for start, end in (('START', 'END'), ('start', 'end'), ('begin', 'end')):
    if start in mark:
      return mark.replace(start, end)
  return f'{mark[:1]}/{mark[1:]}'


def without_mark(text: str, mark: str) -> str:
  """The text, which may open thoughts, behind a prompt that ends in `mark`."""
  bare, stem = text.lstrip(), mark.strip()
  if not stem or not bare.startswith(stem):
    return text
  return bare.removeprefix(mark if bare.startswith(mark) else stem)


def never_closes(text: str) -> bool:
  """Whether a text begins with thoughts that have no end."""
  mark = thought_at_start(text)
  return bool(mark) and closed_thought(mark) not in text


def without_thoughts(text: str) -> str | None:
  """What a text says outside of its thoughts; None: a thought has no end.

  A mark that closes what was not opened ends thoughts that the prompt opened,
  so all before it is one. Thoughts may stand anywhere.
  """
  said, start, is_open = [], 0, False
  for mark in _MARK.finditer(text):
    if mark['opens']:
      if not is_open:
        said.append(text[start : mark.start()])
      is_open = True
      continue
    if not is_open:
      said.clear()
    is_open, start = False, mark.end()
  return None if is_open else ''.join((*said, text[start:]))


def thoughts_of(turn: Mapping[str, object], call: str = '') -> Thoughts:
  """The thoughts of a turn, which stand apart or begin its content.

  They need not be opened there, where `call` opens them.
  """
  content = turn.get('content')
  content = content if isinstance(content, str) else ''
  for name in REASONING:
    apart = turn.get(name)
    if isinstance(apart, str) and apart.strip():
      return Thoughts('', apart.strip(), content)
  begun = thought_at_start(content)
  closed = closed_thought(begun or call or '<think>')
  thoughts, found, words = content[len(begun) :].partition(closed)
  if not found:
    return Thoughts(begun.strip(), '', content)
  return Thoughts(begun.strip(), thoughts.strip(), words.lstrip('\n'))


def is_doubled(said: str, turn: Mapping[str, object]) -> bool:
  """Whether the thoughts of a turn are opened or closed once more."""
  content = turn.get('content')
  content = content if isinstance(content, str) else ''
  mark = thoughts_of(turn).mark or thought_at_start(said).strip()
  marks = (mark, closed_thought(mark)) if mark else ()
  return any(said.count(m) > max(content.count(m), 1) for m in marks)


def _opens(mark: str) -> bool:
  return '/' not in mark and 'end' not in mark.lower()
