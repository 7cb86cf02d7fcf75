"""The expression that a final answer is, or that its prose ends in."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from gft_jax.answers.numbers import number_of
from gft_jax.answers.parts import computed, condition, is_words, without_unit
from gft_jax.answers.reading import Answer
from gft_jax.answers.spelling import spelled
from gft_jax.answers.units import unit_of

# $...$ on one line, \\(...\\), $$...$$ and \\[...\\].
_FORMULA = re.compile(
  r'\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$([^$\n]+?)(?<!\\)\$',
  re.DOTALL,
)
# Signs for private use, each in the place of a formula.
_FIRST, _HIDDEN = 0xE000, '[\ue000-\uf8ff]'
# A word of prose; single letters are variables, but for these.
_PROSE = re.compile(
  r'^["\'(\[{*_-]*(?!(?:sqrt|pi|sin|cos|tan|log|ln|exp)\b)(?:[^\W\d_]{2,}|[aAI](?![\w^_*/+=-]))'
)
_MATHEMATICAL = re.compile(r'\d|\\[a-zA-Z]|[\ue000-\uf8ff∞∅π√½⅓⅔¼¾]|\bpi\b')
# 'not 5' and 'wrong' in a stated answer.
_DENIED = re.compile(r'^\W*not\b|\bnot\s+(?:\w+\s+)?-?\d|\bwrong\b')
# 'We cannot determine how many of the 6 are left' states no number.
_REFUSED = re.compile(
  r"\b(?:cannot|can't|can not|impossible to|unable to|not possible to)\s+"
  r'(?:be\s+)?(?:determin|answer|solv|say|tell|find|know|calculat)'
  r'|\b(?:not enough|insufficient) information\b',
  re.IGNORECASE,
)
# The rounded value behind an exact answer: '2√5 (about 4.47)'.
_ABOUT = re.compile(
  r'(?<=\S)(?:,\s*|\s+\()(?:or\s+)?(?:approximately|about|roughly)\s+-?[\d.]+\)?(?=\.?$)'
)
# Words beside a number that change it.
_CHANGED = re.compile(
  r"""\d[\s$.,]*(?:squared|cubed|halves|thirds|fifths|sixths|tenths|hundredths
    |thousandths|doubled|tripled|factorial|plus|minus|to\sthe\spower|times\sas)\b
  | \b(?:twice|half\sof|third\sof|quarter\sof|root\sof|(?:no|not)\smore\sthan|under
    |below|above|more\sthan|less\sthan|fewer\sthan|greater\sthan|almost|close\sto
    |between)\s+[$\\]?-?\d""",
  re.VERBOSE | re.IGNORECASE,
)
# Lines of a computation.
_ALIGNED = re.compile(
  r'\\(?:begin|end)\{(?:align|aligned|gather|gathered|equation|split|eqnarray)\*?\}'
)
_OF_UNITS = ('per', 'square', 'cubic')
_JOINS = ('or', 'and')


def expression(said: Answer) -> str | None:
  """The expression of a final answer, spelled; None: it has none.

  Of prose it is the last formula or number, of a stated sentence the first;
  those that 'or' and 'and' join are one, so that a hedge is not its last half.
  A number that words change, 'twice 7', is none.
  """
  text = spelled(said.text)
  if _REFUSED.search(text) or (said.marked and _DENIED.search(text)):
    return None
  if said.marked or '\n' not in said.text:
    if number_of(text, letters=True) or not is_words(without_unit(text)):
      return computed(text) if re.search(r'[\w\\]', text) else None
  prose = re.sub(r'\\text\s*\{([^{}]*)\}', r' \1 ', _ABOUT.sub('', said.text))
  *_, claimed = re.split(r'\b(?:is|are|was|equals)\b', prose)
  if said.marked and _MATHEMATICAL.search(claimed):
    prose = claimed  # 17 of 'the sum of 10 and 7 is 17'
  runs = _runs(prose)
  if not runs:
    return text if condition(text) != text else None
  run = _chosen(runs, said.marked)
  return spelled(run.text) if run.is_meant else None


def formulas(text: str) -> list[str]:
  """What stands between dollars or brackets of LaTeX, but for amounts."""
  found = (''.join(filter(None, m.groups())) for m in _FORMULA.finditer(text))
  return [formula for formula in found if not is_words(spelled(formula))]


class _Run(NamedTuple):
  """Words in a row that are mathematics.

  Attributes:
    text: the words.
    sentence: its number.
    is_meant: neither a hedge nor a number that the words around it change.
  """

  text: str
  sentence: int
  is_meant: bool

  @property
  def is_computed(self) -> bool:
    return '=' in self.text


def _chosen(runs: list[_Run], marked: bool) -> _Run:
  """The run that is the answer: of a sentence the first, else the last.

  In the last sentence a computation goes before other numbers.
  """
  if marked:
    hedged = len(runs) > 1 and runs[0].text != runs[1].text
    return runs[0]._replace(is_meant=runs[0].is_meant and not hedged)
  last = [run for run in runs if run.sentence == runs[-1].sentence]
  computations = [run for run in last if run.is_computed]
  return computations[0] if len(computations) == 1 else runs[-1]


def _runs(text: str) -> list[_Run]:
  """The words of a text that are mathematics, those in a row together."""
  hidden: list[str] = []

  def hide(found: re.Match) -> str:
    formula = ''.join(filter(None, found.groups()))
    if is_words(spelled(formula)) and not found[0].startswith('\\'):
      return found[0]
    hidden.append(formula)
    return f' {chr(_FIRST + len(hidden) - 1)} '

  text = re.sub(_HIDDEN, ' ', text)
  text = re.sub(r'\b(?:negative|(?<=is )minus)\s+(?=[$\\\d])', '-', text)
  if _ALIGNED.search(text):
    text = _ALIGNED.sub('\n', text).replace('&', ' ').replace(r'\\', '\n')
  text = _FORMULA.sub(hide, text)
  found = []
  sentences = re.split(r'\n|(?<=[.!?])\s', text)
  for number, sentence in enumerate(sentences):
    tokens = sentence.split()
    for start, end in _spans(tokens):
      joined = ' '.join(tokens[start:end])
      if _MATHEMATICAL.search(joined):
        around = ' '.join(tokens[max(0, start - 3) : end + 3])
        joined = re.sub(
          _HIDDEN, lambda sign: hidden[ord(sign[0]) - _FIRST], joined
        )
        # '5 or', but not '5 or so'.
        after = tokens[end : end + 2]
        hedged = after[:1] == ['or'] and after[1:] != ['so']
        run = _Run(joined, number, not (hedged or _CHANGED.search(around)))
        found.append(run)
  return found


def _spans(tokens: list[str]) -> Iterator[tuple[int, int]]:
  """Where the runs of a sentence begin and end."""
  start = 0
  for at, token in enumerate([*tokens, 'end']):
    word = token.strip('.,;')
    if start < at and (token in _JOINS or word in _OF_UNITS or unit_of(word)):
      continue
    if _PROSE.match(token):
      end = at
      while end > start and tokens[end - 1] in _JOINS:
        end -= 1
      yield start, end
      start = at + 1
    elif token.endswith(('.', ';', ':', '?', '!')):
      yield start, at + 1
      start = at + 1
