r"""The rewards that are built in: what an answer is worth beside a reference.

A reward is a function `(prompt, answer, response) -> float` of the question,
the reference answer and what the policy wrote, without its stop token. Model
output is data: it is parsed, never executed. Parsing may still be slow, so
`rewards.grader` calls these functions in guarded processes.
"""

import functools
import re
from collections.abc import Callable
from fractions import Fraction

from gft_jax.answers.equality import equal, words_equal
from gft_jax.answers.expressions import expression, formulas
from gft_jax.answers.letters import chosen, is_formula
from gft_jax.answers.numbers import Number, number_of, values
from gft_jax.answers.parts import (
  close_up,
  condition,
  is_words,
  split,
  unassigned,
  without_unit,
  words,
)
from gft_jax.answers.reading import Answer, read, readings
from gft_jax.answers.spelling import spelled
from gft_jax.answers.verified import Unreadable
from gft_jax.config import RewardConfig

Reward = Callable[[str, str, str], float]


class AnswerError(ValueError):
  """The response holds no answer that can be read (cause 'parse')."""


class GoldError(ValueError):
  """The reference answer cannot be read (cause 'gold')."""


def arithmetic(prompt: str, answer: str, response: str) -> float:
  """1 if the integer after the last '#' of `response` is `answer`, else 0."""
  del prompt
  return float(
    _integer_after_hash(f'#{answer}', GoldError)
    == _integer_after_hash(response, AnswerError)
  )


def mathematics(prompt: str, answer: str, response: str) -> float:
  r"""1 if what `response` finally says equals `answer`, else 0.

  `reading.read` reads both, so a worked solution is a reference, too, and
  `answers.equality` compares them; math-verify judges what is neither a number,
  words nor a list. Where the reference is one letter, a response is right that
  chooses it, 'B. 12'.

  The official grader (ZJU-OmniAI/GFT at 763384d, reward_score/NuminaMath.py)
  compares strings first. tests/answers/rewards_test.py lists where the two
  differ.

  Raises:
    AnswerError, GoldError: there is no expression.
    Exception: whatever math-verify raises as it compares. Its own time-outs are
      off; the pool has the deadline.
  """
  del prompt
  reference, said = read(answer), read(response)
  if reference is None:
    raise GoldError('there is no reference answer')
  if said is None:
    raise AnswerError('no answer in the response')
  alone = len(words(spelled(reference.text)).strip('()')) == 1
  letter = chosen(reference) if alone else None
  if letter and chosen(said) == letter:
    return 1.0
  gold, whole = spelled(reference.text), spelled(said.text)
  if gold and close_up(gold) == close_up(whole):
    return 1.0
  try:
    return float(_is_right(gold, whole, reference, said))
  except Unreadable as error:
    kind = GoldError if error.side == 'reference' else AnswerError
    raise kind(str(error)) from None


def _is_right(gold: str, whole: str, reference: Answer, said: Answer) -> bool:
  """Whether a response is right; its texts are spelled in `gold`, `whole`."""
  gold = condition(gold)
  if number_of(gold) is None and is_words(without_unit(gold)):
    if words_equal(gold, whole):
      return True
    inside = formulas(reference.text)
    if len(inside) != 1 or is_words(without_unit(whole)):
      return False
    gold = spelled(inside[0])
  found = expression(said)
  if not found:
    raise Unreadable('answer')
  return any(
    equal(one, other)
    for one in _approximations(gold, both=True)
    for other in _approximations(found)
  )


def choice(prompt: str, answer: str, response: str) -> float:
  """1 if `response` chooses the letter `answer` of A to J, else 0.

  `answers.letters` reads it from what the response finally says.

  Raises:
    AnswerError, GoldError: no letter, or two.
  """
  del prompt
  if not re.fullmatch('[A-J]', answer.strip()):
    raise GoldError(f'the reference answer {answer!r} is not a letter')
  letter = _letter(response)
  if letter is None:
    raise AnswerError('no letter in the response')
  return float(letter == answer.strip())


def exact(prompt: str, answer: str, response: str) -> float:
  r"""1 if the final answer is `answer`, but for white space and case.

  Emphasis, quotes, \text{...} and a full stop are no part of an answer.

  Raises:
    AnswerError: an unfinished thought, or nothing.
    GoldError: the reference is empty.
  """
  del prompt
  if not answer.strip():
    raise GoldError('the reference answer is empty')
  said = read(response)
  if said is None:
    raise AnswerError('no answer in the response')
  return float(_folded(said.text) == _folded(answer))


def numeric(
  prompt: str, answer: str, response: str, *, tolerance: float
) -> float:
  """1 if the final answer is a number within `tolerance` of `answer`.

      |x - y| <= tolerance |y|

  Numbers are what `answers.numbers` reads: with commas of thousands, a
  currency, a unit, a percent sign, an exponent, as a fraction or a mixed number.

  Args:
    tolerance: relative to the reference.

  Raises:
    AnswerError, GoldError: no number.
  """
  del prompt
  reference, said = read(answer), read(response)
  y = _number(reference, GoldError)
  x = _number(said, AnswerError)
  near = Fraction(tolerance) * abs(y.value)
  return float(any(abs(value - y.value) <= near for value in values(y, x)))


def formatted(
  prompt: str, answer: str, response: str, *, pattern: str
) -> float:
  """1 if the regular expression `pattern` is found in `response`, else 0."""
  del prompt, answer
  return float(bool(re.search(pattern, response, re.DOTALL)))


def length(prompt: str, answer: str, response: str, *, limit: int) -> float:
  """Characters of `response` in units of `limit`, at most 1."""
  del prompt, answer
  return min(len(response) / limit, 1.0)


def built_in(settings: RewardConfig) -> dict[str, Reward]:
  """The rewards of this module by name, with their parameters."""
  return {
    'arithmetic': arithmetic,
    'choice': choice,
    'exact': exact,
    'format': functools.partial(formatted, pattern=settings.pattern),
    'length': functools.partial(length, limit=settings.length_limit),
    'math': mathematics,
    'numeric': functools.partial(numeric, tolerance=settings.tolerance),
  }


def extract(function: str, response: str) -> str | None:
  """What a response votes for under maj@k, in one spelling, or None.

  Two answers are the same vote where these texts are equal: numbers by value
  (0.5 is 1/2), everything else by its spelling.

  Args:
    function: a `reward.function`. Of 'arithmetic' the vote is the integer, of
      'choice' the letter and of 'exact' the text that they grade; of any other
      what `mathematics` grades.
    response: the text.
  """
  if function == 'arithmetic':
    try:
      return str(_integer_after_hash(response, AnswerError))
    except AnswerError:
      return None
  if function == 'choice':
    return _letter(response)
  said = read(response)
  if said is None:
    return None
  if function == 'exact':
    return _folded(said.text)
  text = spelled(said.text)
  if said.marked and is_words(without_unit(text)) and not number_of(text):
    return words(text)
  found = expression(said)
  if not found:
    return None
  brackets, items = split(unassigned(found)) or ('', [found])
  votes = [_one_spelling(item) for item in items]
  if len(votes) == 1:
    return votes[0]
  ordered = brackets not in ('', r'\{\}')
  half = len(brackets) // 2
  joined = ','.join(votes if ordered else sorted(votes))
  return f'{brackets[:half]}{joined}{brackets[half:]}'


def _one_spelling(text: str) -> str:
  text = unassigned(spelled(text))
  number = number_of(text, letters=True)
  return str(number.value) if number else close_up(without_unit(text))


def _letter(response: str) -> str | None:
  """The letter of what a response finally says that is no formula."""
  for said in readings(response, bold=False):
    if not is_formula(said.text):
      return chosen(said)
  return None


def _integer_after_hash(text: str, error: type[ValueError]) -> int:
  number = text.rpartition('#')[2].strip() if '#' in text else ''
  # int() would also take '1_0', '+1' and digits of other scripts, and raises
  # beyond 4300 digits.
  if not re.fullmatch('-?[0-9]{1,1000}', number):
    raise error(f"no integer after the last '#' of {text[-80:]!r}")
  return int(number)


def _approximations(text: str, *, both: bool = False) -> list[str]:
  r"""The exact side of '\frac{1}{3} \approx 0.333', or both sides.

  'x \approx 3' becomes 'x = 3'.
  """
  sign = r'\\approx(?![a-zA-Z])'
  exact, *rounded = (side.strip() for side in re.split(sign, text))
  has_value = re.search(r'\d|\\[a-zA-Z]', exact)
  if len(rounded) == 1 and has_value and not split(text):
    return [exact, *rounded] if both else [exact]
  return [re.sub(sign, '=', text)]


def _folded(text: str) -> str:
  return words(spelled(text))


def _number(said: Answer | None, error: type[ValueError]) -> Number:
  found = expression(said) if said else None
  number = number_of(unassigned(found), letters=True) if found else None
  if number is None:
    raise error(f'no number in {said.text[-80:]!r}' if said else 'no answer')
  return number
