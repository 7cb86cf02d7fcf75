"""The expression that a final answer is, or that its prose ends in."""

import re

from gft_jax.answers.numbers import is_unit, number_of
from gft_jax.answers.parts import condition, is_words, without_unit
from gft_jax.answers.reading import Answer
from gft_jax.answers.spelling import spelled

# $...$ on one line, \\(...\\), $$...$$ and \\[...\\].
_FORMULA = re.compile(
  r'\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$([^$\n]+?)(?<!\\)\$',
  re.DOTALL,
)
# A word of prose; single letters are variables, but for these.
_PROSE = re.compile(
  r'^["\'(\[{*_-]*(?!(?:sqrt|pi|sin|cos|tan|log|ln|exp)\b)(?:[^\W\d_]{2,}|[aAI](?![\w^_*/+=-]))'
)
_MATHEMATICAL = re.compile(r'\d|\\[a-zA-Z]|[\ue000-\uf8ff∞∅π√½⅓⅔¼¾]|\bpi\b')
# Lines of a computation.
_ALIGNED = re.compile(
  r'\\(?:begin|end)\{(?:align|aligned|gather|gathered|equation|split|eqnarray)\*?\}'
)
_OF_UNITS = ('per', 'square', 'cubic')
_JOINS = ('or', 'and')


def expression(said: Answer) -> str | None:
  """The expression of a final answer, spelled; None: it has none.

  Of prose it is the last formula or number; those that 'or' and 'and' join are
  one, so that a hedge is not its last half.
  """
  text = spelled(said.text)
  if said.marked or '\n' not in said.text:
    if number_of(text, letters=True) or not is_words(without_unit(text)):
      return _result(text) if re.search(r'[\w\\]', text) else None
  prose = said.text
  if said.marked:
    *_, claimed = re.split(r'\b(?:is|are|was|be|equals)\b', prose)
    prose = claimed if _MATHEMATICAL.search(claimed) else prose
  found = _runs(prose)
  if found:
    return spelled(found[0 if said.marked else -1])
  return text if condition(text) != text else None


def formulas(text: str) -> list[str]:
  """What stands between dollars or brackets of LaTeX, but for amounts."""
  found = (''.join(filter(None, m.groups())) for m in _FORMULA.finditer(text))
  return [formula for formula in found if not is_words(spelled(formula))]


def _runs(text: str) -> list[str]:
  """The words of a text that are mathematics, those in a row together."""
  hidden: list[str] = []

  def hide(found: re.Match) -> str:
    formula = ''.join(filter(None, found.groups()))
    if is_words(spelled(formula)) and not found[0].startswith('\\'):
      return found[0]
    hidden.append(formula)
    return f' {chr(0xE000 + len(hidden) - 1)} '

  if _ALIGNED.search(text):
    text = _ALIGNED.sub('\n', text).replace('&', ' ').replace(r'\\', '\n')
  runs: list[list[str]] = [[]]
  for line in _FORMULA.sub(hide, text).splitlines():
    for token in line.split():
      if token in _JOINS and runs[-1]:
        runs[-1].append(token)
      elif _PROSE.match(token):
        word = token.strip('.,;')
        if runs[-1] and (word in _OF_UNITS or is_unit(word)):
          runs[-1].append(token)
        else:
          runs.append([])
      else:
        runs[-1].append(token)
        if token.endswith(('.', ';', ':', '?', '!')):
          runs.append([])
    runs.append([])
  found = []
  for run in runs:
    while run and run[-1] in _JOINS:
      run.pop()
    joined = ' '.join(run)
    if _MATHEMATICAL.search(joined):
      for i, formula in enumerate(hidden):
        joined = joined.replace(chr(0xE000 + i), formula)
      found.append(_result(joined))
  return found


def _result(run: str) -> str:
  """18 of '9 * 2 = 18': the last side, where the one before has no letter."""
  before, sign, last = run.rpartition('=')
  computed = sign and last.strip() and not re.search('[a-zA-Z<>]', before)
  return last if computed else run
