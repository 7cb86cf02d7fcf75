r"""Numbers as they are written: 1200.50, 2 2/3, 3 \times 10^{8}, 12.5%, 60 km/h.

They are read from the one spelling of `answers.spelling`, as exact fractions.
Nothing is evaluated.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from gft_jax.answers.units import unit_of

# |x - y| / |y| of a decimal that is right: the official grader's.
TOLERANCE = Fraction(1, 10_000)
# The same where one of the two is a whole number.
WHOLE_TOLERANCE = Fraction(1, 1_000_000_000)
# Larger powers of ten are left to math-verify.
_MOST_DIGITS = 400
# Longer texts are no numbers; Python refuses to read 4,300 digits.
_LONGEST = 1000


class Number(NamedTuple):
  """A number that was read.

  Attributes:
    value: of the digits, without the percent sign.
    is_decimal: it was written with a decimal point.
    percent: a percent sign follows.
    unit: the words that follow, or ''.
  """

  value: Fraction
  is_decimal: bool
  percent: bool = False
  unit: str = ''

  @property
  def is_whole(self) -> bool:
    """It was written as a whole number."""
    return not self.is_decimal and self.value.denominator == 1


_DECIMAL = r'(?:\d+(?:\.\d*)?|\.\d+)'
_NUMBER = re.compile(
  rf"""(?P<sign>[-+]?)\s*(?:
    10\^(?:\{{\s*(?P<k>[-+]?\d+)\s*\}}|(?P<l>[-+]?\d+))
    | (?P<whole>\d+)(?:\s*\\frac\{{(?P<a>\d+)\}}\{{(?P<b>\d+)\}}
                    |\s+(?:and\s+)?(?P<c>\d+)\s*/\s*(?P<d>\d+))
    | \\frac\{{\s*(?P<e>-?\s*{_DECIMAL})\s*\}}\{{\s*(?P<f>{_DECIMAL})\s*\}}
    | (?P<g>{_DECIMAL})\s*/\s*(?P<h>{_DECIMAL})
    | (?P<decimal>{_DECIMAL})
      (?:\s*(?:\\times|\\cdot|x)\s*10\^(?:\{{\s*(?P<i>[-+]?\d+)\s*\}}|(?P<j>[-+]?\d+)))?
  )""",
  re.VERBOSE,
)
_MULTIPLES = {
  'hundred': 10**2,
  'thousand': 10**3,
  'million': 10**6,
  'billion': 10**9,
  'trillion': 10**12,
  'dozen': 12,
}
_NAMES = {
  name: value
  for value, name in enumerate(
    'zero one two three four five six seven eight nine ten eleven twelve'
    ' thirteen fourteen fifteen sixteen seventeen eighteen nineteen'
    ' twenty'.split()
  )
}

# Words behind a number that change it, or that join another to it.
_NO_UNIT = re.compile(
  r"""\b(?:or|and|plus|minus|times|to|x|over|choose|squared|cubed|divided|factorial
  |modulo?|base|not|but|if|when|otherwise|halves|halfs?|thirds|fourths|fifths|sixths
  |sevenths|eighths|ninths|tenths|hundredths|thousandths|doubled|tripled|power
  |less|more|greater|fewer)\b|[-+,=_<>|:]|\d""",
  re.VERBOSE,
)
_POWER = re.compile(r'\^\s*\{?\s*-?\d+\s*\}?')
# The reason behind an answer, which may hold further numbers; but no hedge.
_HEDGE = r'(?!.*\b(?:or|but|maybe|possibly|perhaps|could)\b)'
_REASON = re.compile(
  rf',?\s+(?:because|since|as|which|so|thus|i\.e\.)\s.*'
  rf'|,\s+{_HEDGE}(?!and\b)[a-z]{{2,}}.*|\s+\((?!mod){_HEDGE}(?=.*\d).*\)$',
  re.DOTALL,
)
# A unit in \text{...}, with its powers.
_TEXT = re.compile(
  r'(?:\s*(?:\\text\s*\{(?:[^{}]|\{[^{}]*\})*\}(?:\s*\^\s*\{?\s*-?\d+\s*\}?)?|/|\\cdot(?![a-z])))+\s*'
)
_PLAIN = re.compile(r'[A-Za-z(ΩµμÅ][A-Za-zΩµμÅ().\s/^{}\d-]*')


def number_of(text: str, *, letters: bool = False) -> Number | None:
  r"""The number that a spelled text is, with its unit; None: it is another.

  Args:
    text: of `spelling.spelled`.
    letters: one bare letter behind the number is a unit, not a variable:
      '5 m'. In \text{m} it always is.
  """
  if len(text) > _LONGEST:
    return None
  text = re.sub(r'^\(([^(),]*)\)$', r'\1', _REASON.sub('', text))
  first, _, rest = text.partition(' ')
  if first.casefold() in _NAMES:
    value = Fraction(_NAMES[first.casefold()])
    return _with_unit(Number(value, False), f' {rest}', letters=False)
  found = _NUMBER.match(text)
  value = _value(found) if found else None
  if found is None or value is None:
    return None
  number = Number(value, is_decimal='.' in found[0])
  return _with_unit(number, text[found.end() :], letters)


def same(reference: Number, found: Number) -> bool:
  """Whether two numbers are one, as decimals are, and in one unit.

  Without a decimal they are equal as fractions.
  """
  units = unit_of(reference.unit), unit_of(found.unit)
  if all(units) and units[0] != units[1]:
    return False
  if reference.percent != found.percent and any(units):
    return False
  return any(close(reference, found, x) for x in values(reference, found))


def values(reference: Number, found: Number) -> list[Fraction]:
  """What a number may be worth beside a reference, for their percent signs.

  With a sign on one side alone it is worth a hundredth, or a hundred times as
  much. Where the question may ask for a percentage, the digits count as well:
  12.5% is 0.125, and 12.5 too.
  """
  if reference.percent == found.percent:
    return [found.value]
  scaled = found.value / 100 if found.percent else found.value * 100
  asked = reference.percent or abs(reference.value) >= 1
  return [scaled, found.value] if asked else [scaled]


def close(reference: Number, found: Number, x: Fraction) -> bool:
  """Whether x is the reference y: |x - y| <= tolerance |y| for decimals.

  Args:
    reference: y.
    found: how x was written.
    x: its value.
  """
  y = reference.value
  if not (reference.is_decimal or found.is_decimal):
    return x == y
  whole = any(n.is_whole for n in (reference, found))
  tolerance = WHOLE_TOLERANCE if whole else TOLERANCE
  return abs(x - y) <= tolerance * abs(y)


def _value(found: re.Match) -> Fraction | None:
  groups = found.groupdict()
  sign = -1 if groups['sign'] == '-' else 1
  above, below = Fraction(0), Fraction(1)
  for a, b in ('ab', 'cd', 'ef', 'gh'):
    if groups[a]:
      above, below = (
        Fraction(groups[n].replace(' ', '').rstrip('.')) for n in (a, b)
      )
  if groups['decimal']:
    above = Fraction(groups['decimal'].rstrip('.'))
  power = groups['i'] or groups['j']
  if groups['k'] or groups['l']:
    above, power = Fraction(1), groups['k'] or groups['l']
  exponent = int(power[:6]) if power else 0
  if not below or abs(exponent) > _MOST_DIGITS:
    return None
  whole = int(groups['whole'] or 0)
  return sign * (whole + above / below) * Fraction(10) ** exponent


def _with_unit(number: Number, rest: str, letters: bool) -> Number | None:
  """The number with what follows it, where that is a unit or a percent sign."""
  percent = re.match(r'\s*\\?%', rest)
  if percent:
    number, rest = number._replace(percent=True), rest[percent.end() :]
  if not rest.strip(' .'):
    return number
  is_text = bool(_TEXT.fullmatch(rest))
  plain = re.sub(r'\\text\s*\{((?:[^{}]|\{[^{}]*\})*)\}', r' \1 ', rest)
  plain = ' '.join(plain.split()).strip(' .')
  if _NO_UNIT.search(_POWER.sub('', plain)):
    return None
  words = plain.strip('()').split()
  multiple = _MULTIPLES.get(words[0].casefold()) if words else None
  if multiple:
    value = number.value * multiple
    return number._replace(value=value, unit=' '.join(words[1:]))
  if is_text:
    return None if plain in ('k', 'M', 'B') else number._replace(unit=plain)
  if not words or not _PLAIN.fullmatch(plain):
    return None
  spaced = rest[:1] in ' ('
  names = re.findall('[A-Za-z]+', _POWER.sub('', plain))
  if not names:
    return None
  alone = any(len(name) == 1 and name != 'a' for name in names)
  if not unit_of(plain):
    meant = spaced and not alone and (len(names[0]) > 2 or len(names) > 1)
  elif alone:  # 5 m, and 5 m/s, but not 5 m n.
    meant = (
      letters and spaced and (len(names) == 1 or re.search(r'[/^]', plain))
    )
  else:
    meant = True
  return number._replace(unit=plain) if meant else None
