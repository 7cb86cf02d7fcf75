r"""What an answer finally says, and what that is worth: pure functions of text.

A reward is a function `(prompt, answer, response) -> float` of the question,
the reference answer and what the policy wrote, without its stop token. Model
output is data: it is parsed, never executed. Parsing may still be slow, so
`rewards.grader` calls these functions in guarded processes.
"""

import functools
import logging
import math
import re
from collections.abc import Callable

from gft_jax.config import RewardConfig
from gft_jax.thoughts import behind_thoughts

Reward = Callable[[str, str, str], float]

# The longest text that regular expressions and parsers see: they are
# superlinear, and an answer stands at the end.
MAX_CHARACTERS = 8192
# What GSM8K puts before a final answer.
MARK = '####'


class AnswerError(ValueError):
  """The response holds no answer that can be read (cause 'parse')."""


class GoldError(ValueError):
  """The reference answer cannot be read (cause 'gold')."""


def last_boxed(text: str) -> str | None:
  r"""The content of the \boxed{...} or \fbox{...} that closes last."""
  opened, found = [], None
  # A brace behind a backslash is a sign, not a bracket.
  for brace in re.finditer(r'\\(?:boxed|fbox)\s*\{|\\.|[{}]', text, re.DOTALL):
    if brace[0].endswith('{') and brace[0] != r'\{':
      opened.append(brace)
    elif brace[0] == '}' and opened:
      start = opened.pop()
      if start[0] != '{':
        found = start.end(), brace.start()
  return text[slice(*found)].strip() if found else None


def after_mark(text: str) -> str | None:
  """What follows the last `####`, to the end of its line.

  A line without a digit that others follow is a heading of Markdown.
  """
  _, mark, rest = text.rpartition(MARK)
  line, _, others = rest.strip().partition('\n')
  heading = bool(others.strip()) and not re.search(r'\d', line)
  return line.rstrip() if mark and not heading else None


def final(response: str) -> str:
  r"""The final answer that a response states.

  The content of its last \boxed{}; without one what follows the last `####`;
  without that what follows the last 'answer is', to the end of the sentence;
  else the whole response. Thoughts that a response begins with are left out.
  Only the last `MAX_CHARACTERS` characters are read.
  """
  text = behind_thoughts(response)[-MAX_CHARACTERS:]
  for found in (last_boxed(text), after_mark(text)):
    if found is not None:
      return found
  stated = re.findall(r'[Aa]nswer is:?\s*(.+?)(?:\.(?:\s|$)|\n|$)', text)
  return stated[-1] if stated else text.strip()


def extract(function: str, response: str) -> str | None:
  r"""The answer that a response gives, as text in one spelling, or None.

  Two answers are the same vote of maj@k where these texts are equal: spaces,
  \left, \text{...}, the currency, the commas of thousands and a decimal part of
  zeros do not matter, but 1/2 and 0.5 are two.

  Args:
    function: a `reward.function`. Of 'arithmetic' it is the integer and of
      'choice' the letter that they grade; of any other the last \boxed{...},
      without one what follows '####', without that the last number.
    response: the text.
  """
  response = response[-MAX_CHARACTERS:]
  if function == 'arithmetic':
    try:
      return str(_integer_after_hash(response, AnswerError))
    except AnswerError:
      return None
  if function == 'choice':
    return _chosen(response)
  for found in (last_boxed(response), after_mark(response)):
    if found is not None:
      return _one_spelling(found)
  numbers = re.findall(_PLAIN_NUMBER, response)
  return _one_spelling(numbers[-1]) if numbers else None


def arithmetic(prompt: str, answer: str, response: str) -> float:
  """1 if the integer after the last '#' of `response` is `answer`, else 0."""
  del prompt
  return float(
    _integer_after_hash(f'#{answer}', GoldError)
    == _integer_after_hash(response, AnswerError)
  )


def mathematics(prompt: str, answer: str, response: str) -> float:
  r"""1 if `response` ends in an expression equal to `answer`, else 0.

  math-verify decides equality, so 1/2, 0.5 and \frac{1}{2} agree. A bare
  reference answer is read as LaTeX. A response without \boxed but with the
  '####' of GSM8K is read from that mark to the end of its line; of any other,
  the last `MAX_CHARACTERS` characters. A `final` answer with the text of the
  reference is right, whether it can be parsed or not, and where the reference is
  one letter, so is a response that chooses it, 'B. 12'.

  The official grader (ZJU-OmniAI/GFT at 763384d, reward_score/NuminaMath.py)
  compares strings first. tests/answers_test.py lists where the two differ.

  Raises:
    AnswerError, GoldError: math-verify found no expression.
    Exception: whatever its parsers raise; `raise_on_error` keeps them loud,
      and its own time-outs, which swallow, are off: the pool has the deadline.
  """
  import math_verify  # half a second that other rewards need not pay

  # It warns in every process that its time-outs are off, as they should be.
  logging.getLogger('math_verify').setLevel(logging.ERROR)
  response = response[-MAX_CHARACTERS:]
  stated, text = _bare(final(response)), _bare(final(answer))
  letter = re.fullmatch(_LETTER, answer.strip())
  if (text and stated == text) or (letter and _chosen(response) == letter[1]):
    return 1.0
  # pyrefly: ignore[bad-argument-type]  # It also takes None: no time-out.
  parse = functools.partial(math_verify.parse, parsing_timeout=None)
  gold = parse(_as_latex(_readable(answer)), raise_on_error=True)
  if not gold:
    raise GoldError(f'no expression in the reference answer {answer!r}')
  found = parse(_readable(response), raise_on_error=True)
  if not found:
    raise AnswerError('no expression in the response')
  return float(
    math_verify.verify(gold, found, timeout_seconds=None, raise_on_error=True)
  )


def choice(prompt: str, answer: str, response: str) -> float:
  r"""1 if `response` chooses the letter `answer` of A to J, else 0.

  What counts is the last \boxed{X}; without one the last 'answer is X'; without
  that the last letter before a bracket or at the end.

  Raises:
    AnswerError, GoldError: no letter.
  """
  del prompt
  if not re.fullmatch('[A-J]', answer.strip()):
    raise GoldError(f'the reference answer {answer!r} is not a letter')
  chosen = _chosen(response[-MAX_CHARACTERS:])
  if chosen is None:
    raise AnswerError('no letter in the response')
  return float(chosen == answer.strip())


def exact(prompt: str, answer: str, response: str) -> float:
  """1 if the `final` answer is `answer`, but for white space and case.

  Raises:
    GoldError: the reference is empty.
  """
  del prompt
  if not answer.strip():
    raise GoldError('the reference answer is empty')
  return float(_folded(final(response)) == _folded(answer))


def numeric(
  prompt: str, answer: str, response: str, *, tolerance: float
) -> float:
  """1 if the number of the `final` answer is within `tolerance` of `answer`.

      |x - y| <= tolerance |y|

  A number may have commas of thousands, a currency before it, a percent sign
  behind it, or a unit after a space, an exponent, and may be a fraction a/b of
  two such numbers.

  Args:
    tolerance: relative to the reference.

  Raises:
    AnswerError, GoldError: no number.
  """
  del prompt
  reference = _number(answer, GoldError)
  found = _number(final(response), AnswerError)
  return float(abs(found - reference) <= tolerance * abs(reference))


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


_LETTER = r'(?:\\text(?:bf|rm)?\{)?\s*\(?([A-J])\)?\s*\}?'
# The third also takes the letter of '(B) 4' and of a response that ends in one.
_CHOICES = (
  r'\\boxed\{\s*(?:\\text(?:bf|rm)?\{)?\s*\(?([A-J])\s*[}).:]',
  # Not the article of 'the answer is A bit long'.
  r'[Aa]nswer(?: is|:)[\s:*$]*\(?([A-J])\b(?!\s+(?!because|since|as\b)[a-z])',
  r'(?:^|[\s(])([A-J])(?:\)|\.?\s*$)',
)
# Also with the commas of thousands.
_PLAIN_NUMBER = r'-?\d+(?:,\d{3})*(?:\.\d+)?'
_DECIMAL = r'[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?'
_NUMBER = rf'(-?)(?:\\\$|[$€£])?\s*({_DECIMAL})(?:\s*/\s*({_DECIMAL}))?(?!\w)'


def _integer_after_hash(text: str, error: type[ValueError]) -> int:
  number = text.rpartition('#')[2].strip() if '#' in text else ''
  # int() would also take '1_0', '+1' and digits of other scripts, and raises
  # beyond 4300 digits.
  if not re.fullmatch('-?[0-9]{1,1000}', number):
    raise error(f"no integer after the last '#' of {text[-80:]!r}")
  return int(number)


def _readable(text: str) -> str:
  r"""The text, or what its mark shows, in the spelling that math-verify reads.

  \$ is the currency, not the mark of mathematics, and 1\,000 is 1000; 3e8 is
  3 \times 10^{8}; a number needs no \textbf{(...)} around it and no full stop before a brace.
  """
  text = re.sub(r'\\\$|(?<=\d)\\[,!](?=\d{3})', '', text)
  if r'\boxed' not in text:
    marked = after_mark(text)
    text = text if marked is None else marked
  text = re.sub(r'\\text(?:bf|rm)?\{\s*\(?(-?[\d.,]+)\)?\s*\}', r'\1', text)
  text = re.sub(r'(\d)\.\s*\}', r'\1}', text)
  power = r'\1 \\times 10^{\2}'
  return re.sub(
    r'(?<![\w.])(\d+(?:\.\d+)?)[eE]\+?(-?\d{1,3})(?!\w)', power, text
  )


def _as_latex(text: str) -> str:
  return text if '$' in text or r'\boxed' in text else f'${text}$'


def _bare(text: str) -> str:
  """Without white space, dollars and a full stop, which mean nothing."""
  return re.sub(r'\s|\$', '', text.replace(r'\$', '')).rstrip('.')


def _one_spelling(text: str) -> str | None:
  text = re.sub(r'\\text\s*\{([^{}]*)\}', r'\1', text)
  text = re.sub(r'\\(?:left|right)(?![a-zA-Z])|\\[!,;:$]|[\s$]', '', text)
  text = re.sub(r'\\[dt]frac', r'\\frac', text).rstrip('.')
  if re.fullmatch(_PLAIN_NUMBER, text):
    text = re.sub(r'\.0+$', '', text.replace(',', ''))
  return text or None


def _chosen(response: str) -> str | None:
  for pattern in _CHOICES:
    found = re.findall(pattern, response)
    if found:
      return found[-1]
  return None


def _folded(text: str) -> str:
  return ' '.join(text.split()).casefold()


def _number(text: str, error: type[ValueError]) -> float:
  """The only number at the beginning of a text."""
  found = re.match(_NUMBER, text.strip()[:100])
  if not found:
    raise error(f'no number in {text[-80:]!r}')
  sign, *parts = found.groups()
  above, below = (float((x or '1').replace(',', '')) for x in parts)
  value = above / below if below else math.inf
  if not math.isfinite(value):
    raise error(f'{found[0]!r} is not finite')
  return -value if sign else value
