"""The letter that an answer to a multiple choice chooses."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from gft_jax.answers.reading import Answer
from gft_jax.answers.spelling import spelled

_LEAD = (
  r'(?:(?:is|the|correct|right|best|answer|option|choice|letter|statement|choose'
  r'|clearly|therefore|definitely|thus|indeed|:|=)\s*)*'
)
_OPEN, _CLOSE = r'(?:\\?[(\[{"\'*]\s*)*', r'(?:\s*\\?[)\]}"\'*])*'
# A letter at the start, and what may follow it: a full stop, its text, a reason.
_FIRST = re.compile(
  rf'^{_LEAD}{_OPEN}([A-J])(?![\w\'])({_CLOSE})\s*(.*)$',
  re.DOTALL | re.IGNORECASE,
)
_OTHER = re.compile(
  rf'^(?:,|;|/|&|\+|and\b|or\b)\s*(?:and\s+|or\s+)?(?:option\s+)?{_OPEN}[A-J]\b(?!\s+[a-z])'
)
_REASON = re.compile(
  r'^(?:$|[.:,;)!]|[-–—]\s|because\b|since\b|as\b|which\b|with\b|due\b|given\b|\d|\n|\('
  r'|is\s+(?:the\s+)?(?:correct|right|answer|true|best|only))'
)
# What claims a letter: 'option B', '(B)', 'I choose B.', 'B is correct'.
_CLAIMS = re.compile(
  r"""\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Ss]tatement)\s*[("']?([A-J])\b
  | (?i:\b(?:choose|chose|pick|select|is|be|with|are|say|go\sfor|therefore|thus|hence
      |so|leaves|leaving|remains|it's|that's|only)\b,?|[:→选選是]|=>|⇒)\s*(?:the\s+)?
    (?:["'(]?([A-J])\b(?=["')]?\s*(?:[.,;:!)。—–]|-\s|$|\n|because|since|as\b))
      |\(([a-j])\))
  | (?:^|(?<=\s))\(([A-J])\)
  | (?:^|(?<=\s))([A-J])\)
  | \b([A-J])\s+is\s+(?:the\s+)?(?:only\s+|most\s+|best\s+)?
    (?:correct|right|true|best|answer|accurate|choice|option)
  | \b[Oo]nly\s+([A-J])\s+(?:is|satisfies|works|fits|holds|remains)""",
  re.VERBOSE,
)
# A line that begins with a letter; several are the options, told again.
_LINES = re.compile(r'(?:^|\n)[ \t]*([A-J])(?:[.):]|[ \t]*(?=\n|$))')
_FIRST_LINE = re.compile(
  r'\s*\(?([A-J])[).]?[ \t]*\n(?!\s*\(?[A-J][).]?[ \t]*(?:\n|$))'
)
_EITHER = re.compile(r'\(?\b[A-J]\)?\s*(?:or|and|/)\s*\(?$')
_DENIED_BEFORE = re.compile(
  r'(?:\b(?:not|never|cannot|rather than|instead of|unlike|unlikely(?: to)?|except'
  r'|think(?: it is)?|wrong answer|incorrect answer)|n\'t)\s*(?:the\s+answer\s+)?(?:the\s+)?'
  r'(?:be\s+|is\s+)?(?:option|choice|answer)?\s*\(?$'
  r'|\b(?:eliminat|rul(?:e|es|ed|ing) out|exclud|discard)(?:(?!leav|remain|\bso\b)[^.\n])*$',
  re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
  r'^["\')]*,?\s*(?:which\s+)?(?:is|are|was|can be|seems)\s*(?:not|n\'t|the\s+)?\s*'
  r'(?:not|wrong|incorrect|false|ruled|eliminated|excluded|impossible|inappropriate)'
  r'|^["\')]*\s*(?:is\s+not|isn\'t|cannot|can\'t|fails|does\s+not|doesn\'t|would\s+not)',
)


class _Claim(NamedTuple):
  letter: str
  before: str
  behind: str


def chosen(said: Answer) -> str | None:
  """The one letter of A to J that a final answer chooses, or None."""
  letter = _at_first(
    re.sub(r'\\text\s*\{([^{}]*)\}', r'\1', spelled(said.text))
  )
  text = re.sub(r'\\\(|\\\)|\$', '', said.text)
  first = _FIRST_LINE.match(text)
  if len(set(_LINES.findall(text))) > 1 and not first:
    text = _LINES.sub('\n', text)
    letter = None
  letter = letter or (first[1] if first else None)
  if letter:
    return letter
  claims = [*filter(_is_meant, _claims(text))]
  if not claims:
    return None
  last = max(claims, key=lambda claim: len(claim.before))
  if _OTHER.match(last.behind.lstrip(')"\' ')) or _EITHER.search(last.before):
    return None
  return last.letter.upper()


def is_formula(text: str) -> bool:
  r"""Whether a text begins with a command of LaTeX that is no \text{...}."""
  return bool(re.match(r'\\(?!text|math(?:rm|bf)|[()\[\]])', text))


def _claims(text: str) -> Iterator[_Claim]:
  for pattern in (_CLAIMS, _LINES):
    for found in pattern.finditer(text):
      at = next(i for i, letter in enumerate(found.groups(), 1) if letter)
      yield _Claim(found[at], text[: found.start(at)], text[found.end(at) :])


def _is_meant(claim: _Claim) -> bool:
  """Whether a claim is not denied: 'not (B)', 'B is wrong', 'we rule out B'."""
  return not (
    _DENIED_BEFORE.search(claim.before[-80:])
    or _DENIED_BEHIND.match(claim.behind[:40])
  )


def _at_first(text: str) -> str | None:
  """The letter that a text begins with, if it means one."""
  found = _FIRST.match(text)
  if not found:
    return None
  letter, closing, rest = found[1], found[2], found[3].strip()
  if letter.islower() and rest:
    return None
  if _OTHER.match(rest) or _DENIED_BEHIND.match(f' {rest}'):
    return None
  return letter.upper() if closing or _REASON.match(rest) else None
