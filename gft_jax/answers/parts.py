r"""What a spelled text is made of: a name, a unit, brackets, elements, words."""

import re

from gft_jax.answers.units import unit_of

# Longer lists are left to math-verify.
_MOST_ELEMENTS = 50
_OPENS, _CLOSES = ('(', '[', '{', r'\{'), (')', ']', '}', r'\}')
_TOKEN = re.compile(r'\\[{}]|\\[a-zA-Z]+|\\.|.', re.DOTALL)
_JOINT = re.compile(r',(?:\s*(?:and|or)\b)?|;|\b(?:and|or)\b')

# A name and what it is, the last side of 'x = 2 + 3 = 5'; no inequality.
_ASSIGNED = re.compile(
  r"""^(?:[a-zA-Z]|\((?:[a-z],\s*)+[a-z]\)|\\[a-zA-Z]+|\\text\s*\{[^{}]*\})
      (?:_\w|_\{\w+\}|'|\([a-zA-Z]\))?\s*
      =(?:[^=<>]*=)*\s*([^=<>]+)$""",
  re.VERBOSE,
)
# A letter or another relation, where commands are gone.
_VARIABLE = re.compile('[a-zA-Z<>]')
_UNIT = re.compile(
  r"""\s*\\text\s*\{\s*(?!(?:or|and|if|for|when|where|with|is)\b)[^{}\d]+\}
      (?:\s*\^\s*\{?\d\}?)?\s*$
  | (?<=[\d})\]a-z])\s+(?:square\s|cubic\s|sq\s)?
      (?!squared|cubed|halves|thirds|[a-z]+ths\b|doubled|tripled|factorial)[a-zA-Z]{3,}(?:\s*\^\{?\d\}?)?$""",
  re.VERBOSE,
)
# Functions, constants and environments, whose names are no words.
_NAMED = re.compile(
  r"""\\(?:begin|end)\s*\{[a-z*]+\}(?:\{[lcr|]+\})?
  | \(?(?:in\s)?base\s\w+\)?
  | _\{?\s*\\text\s*\{[a-z]+\}\s*\}?
  | \\(?!text|le(?![a-zA-Z])|ge(?![a-zA-Z])|ne(?![a-zA-Z]))[a-zA-Z]+
  | \b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|lim|max|min|mod|gcd|lcm
    |arcsin|arccos|arctan|sinh|cosh|tanh|and|or)\b""",
  re.VERBOSE,
)
_WORD = re.compile(
  r'[^\W\d_]{3,}|\b(?:an|as|at|be|by|do|he|if|is|it|my|no|of|on|so|up|us|we)\b',
  re.IGNORECASE,
)
_BUILDER = re.compile(
  r"""^\\\{\s*([a-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?)?\s*
      [|:]\s*(.*\b\1\b.*)\\\}$""",
  re.VERBOSE,
)
_SETS = {
  'all real numbers': r'\mathbb{R}',
  'all reals': r'\mathbb{R}',
  'empty set': r'\emptyset',
  'the empty set': r'\emptyset',
}


def words(text: str) -> str:
  """What a spelled text says as words: unwrapped, in lower case."""
  text = re.sub(r'\\text\s*\{([^{}]*)\}', r'\1', text)
  return ' '.join(text.split()).strip('.!,; ').casefold()


def is_words(text: str) -> bool:
  """Whether a text has words, which no parser of LaTeX understands."""
  return bool(_WORD.search(_NAMED.sub(' ', text)))


def close_up(text: str) -> str:
  """A text without the spaces and braces that part nothing."""
  text = re.sub(r'\\text\s*(?=\{)', '', text)
  text = re.sub(r'(?<=[\^_])\{(\w)\}|(?<=\\sqrt)\{(\w)\}', r'\1\2', text)
  return re.sub(r'(?<!\d)\s+|\s+(?!\d)', '', text)


def unwrapped(text: str) -> str:
  """18 of '((18))', but no list and no interval."""
  while text[:1] == '(' and _end(text) == len(text) and ',' not in text:
    text = text[1:-1].strip()
  return text


def without_unit(text: str) -> str:
  r"""5\pi of '5\pi\text{ cm}' and of '5\pi square units'."""
  bare = _UNIT.sub('', text)
  tail = re.search(r'\s([a-zA-Z]{2}[a-zA-Z/^{}\d]*)$', bare)
  if tail and unit_of(tail[1]):
    bare = bare[: tail.start()]
  return bare if re.search(r'\d|\\[a-zA-Z]|^[a-z]$', bare) else text


def unassigned(text: str) -> str:
  """5 of 'x = 5' and of '2 + 3 = 5'."""
  found = _ASSIGNED.match(text) if len(_at_top(text)) == 1 else None
  return found[1].strip() if found else computed(text)


def computed(text: str) -> str:
  """5 of '2 + 3 = 5', where no variable is free before the last sign."""
  before, sign, last = text.rpartition('=')
  is_list = len(_at_top(text)) > 1 or text.startswith(r'\{')
  if is_list or not sign or not last.strip():
    return text
  bound = re.match(r'\s*\\(?:lim|int|sum|prod|det)(?![a-zA-Z])', before)
  free = _VARIABLE.search(_NAMED.sub(' ', before)) and not bound
  return text if free else last.strip()


# What may stand before the sign where all of it is a name: AB, m + n, P(A).
_NAME = re.compile(
  r"""(?:\\(?:angle|overline|overrightarrow|vec|frac|lim|tan|sin|cos|arg|text|mathbb|sum
    |alpha|beta|theta|gamma|phi|lambda|mu|triangle|to|infty|cap|cup|mid|circ|prime)
    |[a-zA-Z]|[+{}()|'\s]|_\{?\w+\}?|(?<=[a-zA-Z])\([^()]*\)|_\{[^{}]*\})+""",
  re.VERBOSE,
)


def value_of_name(text: str) -> str:
  """12 of 'AB = 12', 'm + n = 12' and 'f(3) = 12', not of '2x = 12'."""
  before, sign, last = text.rpartition('=')
  plain = sign and last.strip() and len(_at_top(text)) == 1
  return last.strip() if plain and _NAME.fullmatch(before) else text


def is_equation(text: str) -> bool:
  """Whether a text is one equation, not a list of them or a condition."""
  one = re.fullmatch(r'[^=<>,;|]*=[^=<>,;|]*', text)
  return bool(one) and not re.search(
    r'\b(?:or|and)\b|\\(?:pm|in|begin)\b', text
  )


def condition(text: str) -> str:
  r"""x > 2 of '\{x | x > 2\}'; the symbol of 'all real numbers'."""
  found = _BUILDER.match(text)
  return found[2].strip() if found else _SETS.get(words(text), text)


def split(text: str) -> tuple[str, list[str]] | None:
  r"""The brackets of a list, or '', and its elements; None: it is no list.

  '\pm 2' are two elements.
  """
  text = re.sub(r'^[a-zA-Z]\s*\\in\s*', '', text.strip())
  brackets, inner = '', text
  for opens in ('(', '[', r'\{'):
    if text.startswith(opens) and _end(text) == len(text):
      closes = r'\}' if opens == r'\{' else text[-1]
      brackets, inner = opens + closes, text[len(opens) : -len(closes)]
  parts = [each for part in _at_top(inner) for each in _signed(part)]
  is_list = len(parts) > 1 or brackets == r'\{\}'
  if not is_list or len(parts) > _MOST_ELEMENTS or re.search('[|:]', inner):
    return None
  return (brackets, parts) if all(map(str.strip, parts)) else None


def _signed(part: str) -> list[str]:
  if r'\pm' not in part:
    return [part]
  upper = re.sub(r'\\pm\b', '+', re.sub(r'\\mp\b', '-', part))
  lower = re.sub(r'\\pm\b', '-', re.sub(r'\\mp\b', '+', part))
  return [re.sub(r'(^|[({=])\s*\+\s*', r'\1', upper), lower]


def _depths(text: str) -> list[int]:
  """Of each character: how many brackets it stands in, its own included."""
  depth, depths = 0, []
  for token in _TOKEN.finditer(text):
    depth += token[0] in _OPENS
    depths += [depth] * len(token[0])
    depth -= token[0] in _CLOSES
  return depths


def _end(text: str) -> int:
  """Where the bracket closes that a text begins with."""
  depth = 0
  for token in _TOKEN.finditer(text):
    depth += (token[0] in _OPENS) - (token[0] in _CLOSES)
    if depth <= 0:
      return token.end()
  return -1


def _at_top(text: str) -> list[str]:
  """The parts between commas, 'and' and 'or' that stand in no bracket."""
  depths = _depths(text)
  parts, start = [], 0
  for joint in _JOINT.finditer(text):
    if depths[joint.start()] == 0:
      parts.append(text[start : joint.start()])
      start = joint.end()
  return [*parts, text[start:]]
