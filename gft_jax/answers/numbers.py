r"""Numbers as they are written: 1200.50, 2 2/3, 3 \times 10^{8}, 12.5%, 60 km/h.

They are read from the one spelling of `answers.spelling`, as exact fractions.
Nothing is evaluated.
"""

import re
from fractions import Fraction
from typing import NamedTuple

# |x - y| / |y| of a decimal that is right: the official grader's.
TOLERANCE = Fraction(1, 10_000)
# The same where one of the two is a whole number.
WHOLE_TOLERANCE = Fraction(1, 1_000_000)
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

# What may stand between a number and a word that is no unit.
_NO_UNIT = re.compile(
  r'\b(?:or|and|plus|minus|times|to|x|over|choose|squared|cubed|divided|factorial'
  r'|modulo?|base|not)\b|[=_<>|]|\d(?<!\^\d)(?<!\^\{\d)'
)
# The reason behind an answer; it may hold further numbers.
_REASON = re.compile(
  r',?\s+(?:because|since|as|which|so|thus|i\.e\.)\s.*|,\s+(?!and\b|or\b)[a-z]{2,}.*'
  r'|\s+\((?!mod)(?=.*\d).*\)$',
  re.DOTALL,
)
# Units that a wrong one can be told from; another word is none of these.
_UNITS = {
  name: names[0]
  for names in map(
    str.split,
    (
      'mm millimeter millimetre',
      'cm centimeter centimetre',
      'm meter metre',
      'km kilometer kilometre',
      'in inch inche',
      'ft foot feet',
      'yd yard',
      'mi mile',
      'mg milligram',
      'g gram',
      'kg kilogram',
      'lb pound',
      'oz ounce',
      'ml milliliter millilitre',
      'l liter litre',
      's sec second',
      'min minute',
      'h hr hour',
      'day',
      'week',
      'month',
      'year yr',
      'dollar usd',
      'cent',
      'euro',
      'hz',
      'n',
      'j',
      'kj',
      'w',
      'kw',
      'v',
      'k kelvin',
      'mol mole',
      'rad radian',
      'f',
      'c',
    ),
  )
  for name in names
}


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
    return _with_unit(value, False, f' {rest}', letters=False)
  found = _NUMBER.match(text)
  value = _value(found) if found else None
  if found is None or value is None:
    return None
  is_decimal = '.' in found[0]
  return _with_unit(value, is_decimal, text[found.end() :], letters)


def same(reference: Number, found: Number) -> bool:
  """Whether two numbers are one, as decimals are, and in one unit.

  Without a decimal they are equal as fractions. A percent sign on one side
  alone may be meant or not: 12.5% is 12.5 and 0.125.
  """
  units = _unit(reference.unit), _unit(found.unit)
  if all(units) and units[0] != units[1]:
    return False
  y, x = reference.value, found.value
  decimal = reference.is_decimal or found.is_decimal
  if reference.percent != found.percent:
    return any(close(y, x * scale, decimal) for scale in _scales(found.percent))
  return close(y, x, decimal)


def close(reference: Fraction, found: Fraction, decimal: bool) -> bool:
  """Whether x is y: |x - y| <= tolerance |y| where one is a decimal."""
  if not decimal:
    return reference == found
  whole = 1 in (reference.denominator, found.denominator)
  tolerance = WHOLE_TOLERANCE if whole else TOLERANCE
  return abs(found - reference) <= tolerance * abs(reference)


def is_unit(text: str) -> bool:
  """Whether a text is a unit that is known."""
  return _unit(text) is not None


def _scales(percent: bool) -> tuple[Fraction, Fraction]:
  return Fraction(1), Fraction(1, 100) if percent else Fraction(100)


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


def _with_unit(
  value: Fraction, is_decimal: bool, rest: str, letters: bool
) -> Number | None:
  """The number with what follows it, where that is a unit or a percent sign."""
  percent = re.match(r'\s*%', rest)
  rest = rest[percent.end() :] if percent else rest
  rest, spaced = rest.strip(' .'), rest[:1] in ' (\\'
  if not rest:
    return Number(value, is_decimal, bool(percent))
  is_text = r'\text' in rest
  plain = re.sub(r'\\text\s*\{([^{}]*)\}', r' \1 ', rest)
  plain = ' '.join(re.sub(r'\\cdot', ' ', plain).split())
  words = plain.strip('() ').split()
  if words and words[0].casefold() in _MULTIPLES and not _NO_UNIT.search(plain):
    value *= _MULTIPLES[words[0].casefold()]
    return Number(value, is_decimal, bool(percent), ' '.join(words[1:]))
  known = _unit(plain) is not None
  if '\\' in plain or _NO_UNIT.search(plain) or not words:
    return None
  if not re.match(r'[A-Za-z(]', plain):
    return None
  name = re.sub(r'[^A-Za-z].*', '', words[0].lstrip('('))
  letter = len(name) == 1
  if not (
    is_text
    or (known and (not letter or (letters and spaced)))
    or (spaced and not letter and len(name) > 2)
    or (spaced and letters and words[0] in ('a', 'A') and len(words) > 1)
  ):
    return None
  return Number(value, is_decimal, bool(percent), plain)


def _unit(text: str) -> tuple[str, ...] | None:
  """The parts of a known unit, over and under its fraction bars."""
  text = re.sub(r'[()]', ' ', text.casefold())
  text = re.sub(r'\b(k?)mph\b', _speed, text)
  text = re.sub(r'\b(?:squared?|sq\.?)\b|\^\{?2\}?', ' ² ', text)
  text = re.sub(r'\bcubed?\b|\bcubic\b|\^\{?3\}?', ' ³ ', text)
  text = re.sub(r'\bper\b|\ban?\b', '/', text)
  parts = re.findall(r'[a-z]+|[²³/]', text)
  known = []
  for part in parts:
    part = part if part in _UNITS or part in '²³/' else part.removesuffix('s')
    if part not in _UNITS and part not in '²³/':
      return None
    known.append(_UNITS.get(part, part))
  sides = ''.join(f'{part} ' for part in known).split('/')
  return (
    tuple(' '.join(sorted(side.split())) for side in sides) if known else None
  )


def _speed(found: re.Match) -> str:
  return 'km/h' if found[1] else 'mi/h'
