r"""Whether two mathematical texts say the same, as a careful teacher decides.

| what the two are | how they are compared |
|---|---|
| the same text, spaces aside | right, whether it can be parsed or not |
| numbers | as exact fractions; decimals within 1e-4 of the reference |
| numerals with a base, 204_5 | by digits, and bases where both are given |
| ratios and times, 2:3:5 | by their numbers |
| words | by their letters, without case |
| lists, tuples, intervals, sets | by brackets, then element by element |
| anything else | math-verify parses both as LaTeX and decides |
"""

import re

from gft_jax.answers.numbers import number_of, same
from gft_jax.answers.parts import (
  close_up,
  computed,
  condition,
  is_equation,
  is_words,
  split,
  unassigned,
  unwrapped,
  value_of_name,
  without_unit,
  words,
)
from gft_jax.answers.spelling import spelled
from gft_jax.answers.verified import equal_expressions

_SET = r'\{\}'
_RELATION = re.compile(r'[<>]|\\[lg]e(?![a-zA-Z])')
_NUMERAL = re.compile(
  r'^\(?([0-9A-F]+)\)?'
  r'(?:_\{?\s*(?:\\text\s*\{)?(\w+?)\}?\s*\}?|\s*\(?(?:in )?base (\w+)\)?)$'
)
_BASES = dict(
  two='2', three='3', four='4', five='5', six='6', seven='7', eight='8',
  nine='9', ten='10', twelve='12', sixteen='16',
)  # fmt: skip
_RATIO = re.compile(
  r'^(\d{1,20}(?::\d{1,20})+)\s*(?:([ap])\.?m)?\b', re.IGNORECASE
)
# What may stand before words in a sentence: 'the function is'.
_SENTENCE = re.compile(
  r'(?!.*\b(?:not|never|no|neither|nor|or|either|and|non)\b)(?!.*n\'t)'
  r'(?:the|this|that|it|there|they|due)\b[\w\s,]{0,60}\s'
)
_ONE_WORD = ('yes', 'no', 'true', 'false')
# One of these, and why; 'no solution' and 'yes or no' are other answers.
_AND_WHY = re.compile(
  r'(yes|no|true|false)(?:$|[,.;:!]|\s[-–—]|\s(?:because|since|as|it|the|this|they|we)\b)'
)


def equal(reference: str, found: str) -> bool:
  """Whether two spelled texts say the same.

  Raises:
    Unreadable: one of them is neither a number, words nor an expression.
    Exception: whatever math-verify raises as it compares.
  """
  reference, found = unwrapped(reference), unwrapped(found)
  if close_up(reference) == close_up(found):
    return True
  for decide in (_numbers, _ratios):  # Their units may contradict.
    decided = decide(reference, found)
    if decided is not None:
      return decided
  reference, found = (
    computed(condition(without_unit(text))) for text in (reference, found)
  )
  sides = unassigned(reference), unassigned(found)
  # An equation and 'y = ...' may be of one line, and both stay whole.
  if not any(map(is_equation, sides)):
    reference, found = sides
  if '=' not in reference:
    found = value_of_name(found)
  if is_equation(found) != is_equation(reference):
    return False
  for decide in (_numbers, _numerals, _words, _lists):
    decided = decide(reference, found)
    if decided is not None:
      return decided
  return equal_expressions(reference, found)


def _numbers(reference: str, found: str) -> bool | None:
  gold = number_of(unassigned(reference))
  answer = number_of(unassigned(found), letters=True) if gold else None
  return same(gold, answer) if gold and answer else None


def _numerals(reference: str, found: str) -> bool | None:
  """Compares digits to a base, which may be left out on one side."""
  digits, bases = [], []
  for text in (reference, found):
    numeral = _NUMERAL.match(text)
    digits.append(numeral[1] if numeral else text)
    if numeral:
      base = numeral[2] or numeral[3]
      bases.append(_BASES.get(base, base))
  if not bases or not all(re.fullmatch('[0-9A-F]+', text) for text in digits):
    return None
  return len({*digits}) == len({*bases}) == 1


def _ratios(reference: str, found: str) -> bool | None:
  """Compares ratios, 2:3:5, and times of day, 4:30 pm."""
  gold, answer = (
    _RATIO.match(re.sub(r'\s?:\s?|\sto\s', ':', words(text)))
    for text in (reference, found)
  )
  if not gold or not answer:
    # 3:4 is 3/4, and no whole number.
    other = found if gold else reference
    one = bool(gold) != bool(answer)
    return False if one and re.fullmatch(r'-?\d+', other) else None
  parts = ([int(n) for n in side[1].split(':')] for side in (gold, answer))
  halves = {side[2].lower() for side in (gold, answer) if side[2]}
  return len(halves) < 2 and next(parts) == next(parts)


def _words(reference: str, found: str) -> bool | None:
  """Compares words; None: the reference is an expression."""
  return words_equal(reference, found) if is_words(reference) else None


def words_equal(reference: str, found: str) -> bool:
  """Whether a text says the words of a reference, also in a sentence."""
  gold, answer = words(reference), words(found)
  said = _AND_WHY.match(answer) if gold in _ONE_WORD else None
  if said:
    return said[1] == gold
  if gold.removesuffix('s') == answer.removesuffix('s'):
    return True
  sentence = _SENTENCE.fullmatch(answer.removesuffix(gold))
  return answer.endswith(gold) and bool(sentence)


def _lists(reference: str, found: str) -> bool | None:
  """Compares lists by their elements; None: one of the two is none."""
  gold, answer = split(reference), split(found)
  if answer and not gold and not (answer[0] or _RELATION.search(found)):
    return all(equal(reference, spelled(item)) for item in answer[1])
  if (
    gold
    and not answer
    and not (gold[0] or _RELATION.search(reference + found) or is_words(found))
  ):
    return all(equal(spelled(item), found) for item in gold[1])
  if gold is None or answer is None:
    return None
  # A pair or a set may stand without its brackets, but no interval.
  (opened, items), (other, left) = gold, answer
  if opened != other and {opened, other} not in ({'', '()'}, {'', _SET}):
    return False
  if '()' in (opened, other) and re.search(r'\bor\b', reference + found):
    return False
  if len(items) != len(left):
    # A set may repeat itself, and \pm may stand inside of an element.
    loose = opened == _SET or r'\pm' in reference + found
    return None if loose else False
  items, left = ([spelled(item) for item in side] for side in (items, left))
  if {opened, other} - {'', _SET}:
    return all(map(_same_element, items, left))
  for item in items:
    at = next((i for i, x in enumerate(left) if _same_element(item, x)), None)
    if at is None:
      return False
    del left[at]
  return True


def _same_element(item: str, other: str) -> bool:
  """Whether two elements are equal, and of one name where both have one."""
  names = {x.partition('=')[0].strip() for x in (item, other) if '=' in x}
  return len(names) < 2 and equal(item, other)
