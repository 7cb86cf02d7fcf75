r"""Whether two mathematical texts say the same, as a careful teacher decides.

| what the two are | how they are compared |
|---|---|
| the same text, spaces aside | right, whether it can be parsed or not |
| numbers | as exact fractions; decimals within 1e-4 of the reference |
| numerals with a base, 204_5 | by digits, and bases where both are given |
| words | by their letters, without case |
| lists, tuples, intervals, sets | by brackets, then element by element |
| anything else | math-verify parses both as LaTeX and decides |

math-verify compares floats at six decimals and chops differences below 1e-15,
so values of expressions are compared here, relative to the reference.
"""

import functools
import logging
import re
from collections.abc import Callable

from gft_jax.answers import numbers
from gft_jax.answers.spelling import spelled, words


class Unreadable(ValueError):
  """A text that is no expression; `side` is 'reference' or 'answer'."""

  def __init__(self, side: str):
    super().__init__(f'no expression in the {side}')
    self.side = side


def equal(reference: str, found: str) -> bool:
  """Whether two spelled texts say the same.

  Raises:
    Unreadable: one of them is neither a number, words nor an expression.
    Exception: whatever math-verify's parsers raise.
  """
  reference, found = _unwrapped(reference), _unwrapped(found)
  if close_up(reference) == close_up(found):
    return True
  decided = _numbers(reference, found)
  if decided is not None:
    return decided
  reference, found = without_unit(reference), without_unit(found)
  reference, found = condition(reference), condition(found)
  sides = unassigned(reference), unassigned(found)
  if not any(map(_is_equation, sides)):
    reference, found = (
      sides  # Else both stay whole, as two equations of a line.
    )
  if _is_equation(found) and '=' not in reference:
    return False
  for decide in (_numbers, _numerals, _ratios, _words, _lists):
    decided = decide(reference, found)
    if decided is not None:
      return decided
  return _expressions(reference, found)


def _unwrapped(text: str) -> str:
  """18 of '((18))', but no list and no interval."""
  while text[:1] == '(' and _closes_at(text) == len(text) and ',' not in text:
    text = text[1:-1].strip()
  return text


_BUILDER = re.compile(
  r'^\\\{\s*([a-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?)?\s*[|:]\s*(.*\b\1\b.*)\\\}$'
)


def condition(text: str) -> str:
  r"""x > 2 of '\{x | x > 2\}'; the symbol of 'all real numbers'."""
  found = _BUILDER.match(text)
  return found[2].strip() if found else _NAMES.get(words(text), text)


_NAMES = {
  'all real numbers': r'\mathbb{R}',
  'all reals': r'\mathbb{R}',
  'empty set': r'\emptyset',
  'the empty set': r'\emptyset',
}


def close_up(text: str) -> str:
  """A spelled text without its spaces."""
  text = re.sub(r'\\text\s*(?=\{)', '', text)
  return re.sub(r'(?<!\w)\s+|\s+(?!\w)', '', text)


_TEXT_UNIT = re.compile(
  r'\s*\\text\s*\{\s*(?!(?:or|and|if|for|when|where|with|is)\b)[^{}\d]+\}(?:\s*\^\s*\{?\d\}?)?\s*$'
  r'|(?<=[\d})\]a-z])\s+(?:square |cubic |sq )?[a-zA-Z]{3,}(?:\s*\^\{?\d\}?)?$'
)


def without_unit(text: str) -> str:
  r"""5\pi of '5\pi\text{ cm}' and of '5\pi square units'."""
  bare = _TEXT_UNIT.sub('', text)
  return bare if re.search(r'\d|\\[a-zA-Z]|^[a-z]$', bare) else text


def _numbers(reference: str, found: str) -> bool | None:
  gold = numbers.number_of(unassigned(reference))
  if gold is None:
    return None
  answer = numbers.number_of(unassigned(found), letters=True)
  return None if answer is None else numbers.same(gold, answer)


# A name and what it is, the last side of 'x = 2 + 3 = 5'; no inequality.
_ASSIGNED = re.compile(
  r'^(?:[a-zA-Z]|\((?:[a-z],\s*)+[a-z]\)|\\[a-zA-Z]+|\\text\s*\{[^{}]*\})(?:_\w|_\{\w+\}|\'|\([a-z]\))?\s*=(?:[^=<>]*=)*\s*([^=<>]+)$'
)


def unassigned(text: str) -> str:
  """5 of 'x = 5' and of '2 + 3 = 5'."""
  if len(_at_top(text)) > 1:
    return text
  found = _ASSIGNED.match(text)
  if found:
    return found[1].strip()
  before, sign, last = text.rpartition('=')
  computed = sign and last.strip() and not _VARIABLE.search(before)
  return last.strip() if computed else text


# A letter that is no part of a command, or a relation.
_VARIABLE = re.compile(
  r'(?<![\\a-zA-Z])[a-zA-Z]|[<>|]|\\[lg]e(?![a-zA-Z])|\\ne(?![a-zA-Z])'
)


def _is_equation(text: str) -> bool:
  """Whether a text is one equation, not a list of them or a condition."""
  return bool(re.fullmatch(r'[^=<>,;|]*=[^=<>,;|]*', text)) and not re.search(
    r'\b(?:or|and)\b|\\(?:pm|in|begin)\b', text
  )


_NUMERAL = re.compile(
  r'^\(?([0-9A-F]+)\)?(?:_\{?\s*(?:\\text\s*\{)?(\w+?)\}?\s*\}?|\s*\(?base (\w+)\)?)$'
)
_BASES = {'two': '2', 'three': '3', 'four': '4', 'five': '5', 'six': '6',
          'seven': '7', 'eight': '8', 'nine': '9', 'ten': '10', 'twelve': '12',
          'sixteen': '16'}  # fmt: skip


def _numerals(reference: str, found: str) -> bool | None:
  """Digits to a base, which may be left out on one side."""
  sides = [_NUMERAL.match(unassigned(text)) for text in (reference, found)]
  if not any(sides):
    return None
  digits, bases = [], []
  for text, side in zip((reference, found), sides):
    digits.append(side[1] if side else unassigned(text))
    base = (side[2] or side[3]) if side else None
    bases.append(_BASES.get(base, base) if base else None)
  if not all(re.fullmatch('[0-9A-F]+', text) for text in digits):
    return None
  agree = None in bases or bases[0] == bases[1]
  return digits[0] == digits[1] and agree


_RATIO = re.compile(r'^(\d{1,20}(?::\d{1,20})+)\s*(?:([ap])\.?m)?\b', re.IGNORECASE)


def _ratios(reference: str, found: str) -> bool | None:
  """Compares ratios, 2:3:5, and times of day, 4:30 pm."""
  sides = [
    _RATIO.match(re.sub(r' ?: ?| to ', ':', text))
    for text in (reference, found)
  ]
  if not all(sides):
    return None
  gold, answer = ([int(n) for n in side[1].split(':')] for side in sides)
  halves = [side[2].lower() for side in sides if side[2]]
  return gold == answer and len(set(halves)) < 2


# Functions and constants, whose names are no words.
_NAMED = re.compile(
  r'\\(?:begin|end)\s*\{[a-z*]+\}(?:\{[lcr|]+\})?|\\(?!text)[a-zA-Z]+|\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|lim|max|min|mod|gcd|lcm'
  r'|arcsin|arccos|arctan|sinh|cosh|tanh|and|or)\b'
)
_WORD = re.compile(
  r'[^\W\d_]{3,}|\b(?:an|as|at|be|by|do|he|if|is|it|my|of|on|so|we)\b',
  re.IGNORECASE,
)


def _words(reference: str, found: str) -> bool | None:
  """Compares words; None: the reference is an expression."""
  gold, answer = (words(text).removesuffix('s') for text in (reference, found))
  if words(reference) in ('yes', 'no', 'true', 'false'):
    return re.match(r'[a-z]*', words(found))[0] == words(reference)
  return gold == answer if is_words(reference) else None


def is_words(text: str) -> bool:
  """Whether a spelled text has words, which no parser of LaTeX understands."""
  return bool(_WORD.search(_NAMED.sub(' ', text)))


# Longer lists are left to math-verify.
_MOST_ELEMENTS = 50
_BRACKETS = {'(': ')', '[': ']', r'\{': r'\}'}


def _lists(reference: str, found: str) -> bool | None:
  """Compares lists by their elements; None: one of the two is none."""
  gold, answer = split(reference), split(found)
  if gold is None or answer is None:
    return None
  if gold[0] != answer[0]:
    # A pair may stand without its brackets, but no interval or set.
    if {gold[0], answer[0]} != {'', '()'} and {gold[0], answer[0]} != {
      '',
      r'\{\}',
    }:
      return False
  ordered = '' not in (gold[0], answer[0]) and gold[0] != r'\{\}'
  if gold[0] == '()' or answer[0] == '()':
    ordered = True
  left = [spelled(item) for item in answer[1]]
  items = [spelled(item) for item in gold[1]]
  if len(items) != len(left):
    return None if gold[0] == r'\{\}' or r'\pm' in reference + found else False
  if ordered:
    return all(map(_element, items, left))
  for item in items:
    same = next((i for i, x in enumerate(left) if _element(item, x)), None)
    if same is None:
      return False
    del left[same]
  return True


def _element(item: str, other: str) -> bool:
  """Whether two elements are equal, and of one name where both have one."""
  names = [x.partition('=')[0].strip() for x in (item, other) if '=' in x]
  return len(names) < 2 or names[0] == names[1] if equal(item, other) else False


def split(text: str) -> tuple[str, list[str]] | None:
  """The brackets of a list, or '', and its elements; None: it is no list."""
  text = text.strip()
  # x \in (1, 2)
  text = re.sub(r'^[a-zA-Z]\s*\\in\s*', '', text)
  brackets, inner = '', text
  for opens in _BRACKETS:
    if text.startswith(opens) and _closes_at(text) == len(text):
      closes = r'\}' if opens == r'\{' else text[-1]
      brackets, inner = opens + closes, text[len(opens) : -len(closes)]
  parts = [each for part in _at_top(inner) for each in _signed(part)]
  if len(parts) < 2 and brackets != r'\{\}':
    return None
  if len(parts) > _MOST_ELEMENTS:
    return None
  if any(part.strip() == '' for part in parts) or '|' in inner or ':' in inner:
    return None
  return brackets, parts


def _signed(part: str) -> list[str]:
  r"""2 and -2 of '\pm 2'."""
  found = re.match(r'\s*\\pm\s*(.+)', part, re.DOTALL)
  return [found[1], f'-{found[1]}'] if found else [part]


_TOKENS = re.compile(r'\\[{}]|\\[a-zA-Z]+|\\.|[(){}\[\]]|.', re.DOTALL)
_JOINT = re.compile(r',(?:\s*(?:and|or)\b)?|;|\b(?:and|or)\b')


def _closes_at(text: str) -> int:
  """Where the bracket closes that a text begins with."""
  depth, end = 0, 0
  for token in _TOKENS.finditer(text):
    depth += (token[0] in ('(', '[', '{', r'\{')) - (
      token[0] in (')', ']', '}', r'\}')
    )
    end = token.end()
    if depth <= 0:
      break
  return end


def _at_top(text: str) -> list[str]:
  """The parts between commas, 'and' and 'or' that stand in no bracket."""
  depth, depths = 0, []
  for token in _TOKENS.finditer(text):
    depth += token[0] in ('(', '[', '{', r'\{')
    depths += [depth] * len(token[0])
    depth -= token[0] in (')', ']', '}', r'\}')
  parts, start = [], 0
  for joint in _JOINT.finditer(text):
    if depths[joint.start()] == 0:
      parts.append(text[start : joint.start()])
      start = joint.end()
  return [*parts, text[start:]]


def _expressions(reference: str, found: str) -> bool:
  """What math-verify decides, values compared relatively."""
  gold = parsed(reference)
  if gold is None:
    raise Unreadable('reference')
  if is_words(found):
    raise Unreadable('answer')
  answer = parsed(found)
  if answer is None:
    raise Unreadable('answer')
  gold, answer = _unions(reference, gold), _unions(found, answer)
  return _same_value(gold, answer)


@functools.lru_cache(maxsize=1)
def _math_verify() -> tuple[Callable, Callable]:
  # Half a second that other rewards need not pay.
  import math_verify
  from latex2sympy2_extended.latex2sympy2 import NormalizationConfig

  # It warns in every process that its time-outs are off, as they should be.
  logging.getLogger('math_verify').setLevel(logging.ERROR)
  parse = functools.partial(
    math_verify.parse,
    extraction_config=[
      math_verify.LatexExtractionConfig(
        normalization_config=NormalizationConfig(
          basic_latex=True, malformed_operators=True, nits=True
        )
      )
    ],
    fallback_mode='no_fallback',
    parsing_timeout=None,
    raise_on_error=True,
  )
  verify = functools.partial(
    math_verify.verify,
    numeric_precision=40,
    allow_set_relation_comp=True,
    timeout_seconds=None,
    raise_on_error=True,
  )
  return parse, verify


def parsed(text: str):
  """math-verify's expression of a spelled text; None: there is none."""
  parse, _ = _math_verify()
  found = parse(f'${text}$')
  return found[0] if found else None


_INEQUALITY = re.compile(r'[<>]|\\[lg]e(?![a-zA-Z])')


def _unions(text: str, side):
  """The set of 'x < 1 or x > 5', as math-verify has no word for it."""
  import sympy

  parts = re.split(r'\bor\b', text)
  if len(parts) < 2 or not all(map(_INEQUALITY.search, parts)):
    return side
  conditions = [parsed(spelled(part)) for part in parts]
  if any(condition is None for condition in conditions):
    return side
  return sympy.Union(*(condition.as_set() for condition in conditions))


# Digits of a value; two values that agree in all but the last ones are equal.
_DIGITS = 30


def _same_value(gold, answer) -> bool:
  gold, answer = (_with_imaginary(side) for side in (gold, answer))
  sides = [_value(side) for side in (gold, answer)]
  if all(value is not None for value in sides):
    return _close(*sides) and not _differ(gold, answer, *sides)
  _, verify = _math_verify()
  return bool(verify(_exact(gold), _exact(answer)))


def _exact(side):
  """Fractions for floats, which math-verify would round."""
  import sympy

  # What its own sets and conjunctions remember is lost in a copy.
  if hasattr(side, '_unsorted_args') or not hasattr(side, 'atoms'):
    return side
  floats = side.atoms(sympy.Float)
  return side.xreplace({x: sympy.Rational(str(x)) for x in floats})


def _value(side):
  """The value of a number, and whether it is a decimal; else None."""
  import sympy

  if isinstance(side, sympy.Eq) and side.lhs.is_Symbol:
    side = side.rhs
  if not isinstance(side, sympy.Expr) or not side.is_number:
    return None
  value = side.evalf(_DIGITS)
  if not value.is_comparable and not value.as_real_imag()[1].is_comparable:
    return None
  decimal = bool(side.atoms(sympy.Float))
  return value, decimal, bool(side.is_integer)


def _with_imaginary(side):
  """The letter i as the imaginary unit."""
  import sympy

  if hasattr(side, '_unsorted_args'):
    return side
  symbols = getattr(side, 'free_symbols', ())
  return side.xreplace({s: sympy.I for s in symbols if s.name == 'i'})


def _differ(gold, answer, of_gold, of_answer) -> bool:
  """Whether two exact numbers are found to differ behind many digits."""
  if of_gold[1] or of_answer[1]:
    return False
  difference = (gold - answer).evalf(5, maxn=1000)
  # With a precision of 1 it is zero as far as can be told.
  return bool(difference.is_Float and difference and difference._prec > 1)


def _close(gold, answer) -> bool:
  (y, *of_gold), (x, *of_answer) = gold, answer
  if y == x or not (y.is_finite and x.is_finite):
    return bool(y == x)
  tolerance = 10.0 ** (5 - _DIGITS)
  if of_gold[0] or of_answer[0]:
    whole = of_gold[1] or of_answer[1]
    tolerance = float(numbers.WHOLE_TOLERANCE if whole else numbers.TOLERANCE)
  return bool(abs(x - y) <= tolerance * abs(y))
