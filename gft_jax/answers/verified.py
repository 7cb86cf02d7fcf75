"""What math-verify decides of two expressions, with values compared relatively.

It compares floats at six decimals and chops differences below 1e-15, so that
1e-7 would be 2e-7: numbers are evaluated here instead.
"""

import functools
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from gft_jax.answers import numbers
from gft_jax.answers.parts import is_words
from gft_jax.answers.spelling import spelled

if TYPE_CHECKING:
  import sympy

# Digits of a value; two that agree in all but the last five are equal.
_DIGITS = 30
# Digits in which two large numbers are sought to differ.
_MOST_DIGITS = 5000
_INEQUALITY = re.compile(r'[<>]|\\[lg]e(?![a-zA-Z])')


class Unreadable(ValueError):
  """A text that is no expression; `side` is 'reference' or 'answer'."""

  def __init__(self, side: str):
    super().__init__(f'no expression in the {side}')
    self.side = side


class _Value(NamedTuple):
  number: 'sympy.Expr'  # real or complex
  is_decimal: bool
  is_whole: bool


def equal_expressions(reference: str, found: str) -> bool:
  """Whether two spelled texts are equal expressions of LaTeX.

  Raises:
    Unreadable: math-verify finds no expression in one.
    Exception: whatever it raises as it compares. Its own time-outs are off;
      the graders have a deadline.
  """
  cased = _has_both_cases(reference) or _has_both_cases(found)
  gold = _parsed(reference, cased)
  if gold is None:
    raise Unreadable('reference')
  answer = None if is_words(found) else _parsed(found, cased)
  if answer is None:
    raise Unreadable('answer')
  y, x = _value(gold), _value(answer)
  if y and x:
    return _close(y, x) and not _differ(gold, answer, y, x)
  same = _library().verify(_exact(gold), _exact(answer))
  return bool(same) and not _vacuous(gold, answer)


def _has_both_cases(text: str) -> bool:
  """Whether a letter stands in both cases, so that R is not r."""
  letters = {*re.sub(r'\\[a-zA-Z]+', ' ', text)}
  return any(
    letter.lower() != letter and letter.lower() in letters for letter in letters
  )


class _Library(NamedTuple):
  parse: Callable
  verify: Callable


@functools.lru_cache(maxsize=1)
def _library() -> _Library:
  # Half a second that other rewards need not pay.
  import math_verify
  from latex2sympy2_extended import latex2sympy2
  from math_verify.grader import should_treat_as_complex

  # It warns in every process that its time-outs are off, as they should be.
  logging.getLogger('math_verify').setLevel(logging.ERROR)
  # Units are read by `numbers`; it would take the m of 6m for one.
  spelling = latex2sympy2.NormalizationConfig(
    basic_latex=True, malformed_operators=True, nits=True
  )

  def parse(text: str, cased: bool):
    try:
      return latex2sympy2.latex2sympy(
        text,
        is_real=not should_treat_as_complex(text),
        normalization_config=spelling,
        conversion_config=latex2sympy2.ConversionConfig(
          lowercase_symbols=not cased
        ),
      )
    except MemoryError:
      raise
    except Exception:  # The parser raises many kinds on text that is no LaTeX.
      return None

  verify = functools.partial(
    math_verify.verify,
    numeric_precision=40,
    allow_set_relation_comp=True,
    timeout_seconds=None,
    raise_on_error=True,
  )
  return _Library(parse, verify)


@functools.lru_cache(maxsize=64)  # A group's answers share their reference.
def _parsed(text: str, cased: bool = False):
  """sympy's object of a spelled text; None: there is none."""
  import sympy

  parts = re.split(r'\bor\b', text)
  if len(parts) > 1 and all(map(_INEQUALITY.search, parts)):
    # 'x < 1 or x > 5' is a union, for which math-verify has no word.
    sides = [_parsed(spelled(part), cased) for part in parts]
    if not all(hasattr(side, 'as_set') for side in sides):
      return None
    return sympy.Union(*(side.as_set() for side in sides))
  side = _library().parse(text, cased)
  if side is None:
    return None
  # What its own sets and conjunctions remember is lost in a copy.
  if hasattr(side, '_unsorted_args'):
    return side
  symbols = getattr(side, 'free_symbols', ())
  return side.xreplace({s: sympy.I for s in symbols if s.name == 'i'})


def _vacuous(gold, answer) -> bool:
  """Whether two equations are alike only in that no real number solves them."""
  import sympy

  sides = (gold, answer)
  if not all(isinstance(side, sympy.Eq) for side in sides):
    return False
  zeros = [sympy.Add(side.lhs, sympy.Mul(-1, side.rhs)) for side in sides]
  ratio = sympy.simplify(sympy.Mul(zeros[0], sympy.Pow(zeros[1], -1)))
  return not ratio.is_number and not sympy.solve(gold)


def _exact(side):
  """Fractions for floats, which math-verify would round."""
  import sympy

  if hasattr(side, '_unsorted_args') or not hasattr(side, 'atoms'):
    return side
  floats = side.atoms(sympy.Float)
  return side.xreplace({x: sympy.Rational(str(x)) for x in floats})


def _value(side) -> _Value | None:
  """What a number comes to; None: it is none."""
  import sympy

  if isinstance(side, sympy.Eq) and side.lhs.is_Symbol:
    side = side.rhs
  if not isinstance(side, sympy.Expr) or not side.is_number:
    return None
  number = sympy.N(side, _DIGITS)
  if not all(part.is_comparable for part in number.as_real_imag()):
    return None
  is_small = sympy.Lt(sympy.Abs(number), 10**_DIGITS)
  is_whole = bool(is_small and number == sympy.floor(number))
  return _Value(number, bool(side.atoms(sympy.Float)), is_whole)


def _close(gold: _Value, answer: _Value) -> bool:
  """Whether |x - y| <= tolerance |y|; infinity is itself alone."""
  import sympy

  y, x = gold.number, answer.number
  if y == x or sympy.oo in (abs(y), abs(x)):
    return y == x
  tolerance = 10.0 ** (5 - _DIGITS)
  if gold.is_decimal or answer.is_decimal:
    whole = gold.is_whole or answer.is_whole
    tolerance = float(numbers.WHOLE_TOLERANCE if whole else numbers.TOLERANCE)
  off = sympy.Abs(sympy.Add(x, sympy.Mul(-1, y)))
  return bool(sympy.Le(off, sympy.Mul(tolerance, sympy.Abs(y))))


def _differ(gold, answer, of_gold: _Value, of_answer: _Value) -> bool:
  """Whether two large numbers are found to differ behind the digits compared."""
  import sympy

  exact = not (of_gold.is_decimal or of_answer.is_decimal)
  large = sympy.Ge(sympy.Abs(of_gold.number), 10 ** (_DIGITS - 10))
  if not (exact and large):
    return False
  difference = (gold - answer).evalf(5, maxn=_MOST_DIGITS)
  # With a precision of 1 it is zero as far as can be told.
  return bool(difference.is_Float and difference and difference._prec > 1)
