r"""Units in one spelling, so that a wrong one is told from a missing one."""

import re

# Names of one unit, the first for all. A letter alone is read in its case.
_TABLE = """
mm millimeter millimetre | cm centimeter centimetre | m meter metre
km kilometer kilometre | nm nanometer nanometre | µm μm micrometer micron
in inch inche | ft foot feet | yd yard | mi mile | au ly
mg milligram | g gram | kg kilogram | lb pound | oz ounce
ml milliliter millilitre | L l liter litre
s sec second | min minute | h hr hour | day | week | month | year yr
dollar usd | cent | euro | rad radian | mol mole | hz hertz | khz | mhz
N newton | J joule | kj kilojoule | kcal | cal | ev | mev | erg
W watt | kw kilowatt | V volt | A amp ampere | K kelvin | F fahrenheit
C celsius | T tesla | Ω ohm | Pa pascal | kpa | atm | db | Å
"""
_UNITS = {
  name: names[0]
  for names in map(str.split, re.split(r'[|\n]', _TABLE.strip()))
  for name in names
}
_GRAMMAR = re.compile(r'(?:[A-Za-zΩµμÅ]+\.?|\^-?\d|[\s/])+')
_PART = re.compile(r'[A-Za-zΩµμÅ]+|\^-?\d|/')


def unit_of(text: str) -> tuple[str, ...] | None:
  """The parts of a known unit, over and under its fraction bar, else None.

  Args:
    text: 'km/h', 'kilometers per hour', 'm s^{-2}', 'square feet'.
  """
  text = re.sub(r'\\cdot(?![a-zA-Z])|[{}]', ' ', text.strip().strip('()'))
  text = text.replace(r'\Omega', 'Ω').replace(r'\mu', 'μ').replace(r'\AA', 'Å')
  text = re.sub(r'\^\s*', '^', text)
  text = re.sub(r'\b(?:squared?|sq\.?)(?![a-z])', '^2', text)
  text = re.sub(r'\b(?:cubed?|cubic)\b', '^3', text)
  text = re.sub(r'\bper\b|\ban?\b', '/', text)
  text = re.sub(r'\b(k?)(?:mph|mp/h)\b', r'\1m/h', text)
  text = re.sub(r'(?<![a-z])m/h', 'mi/h', text)
  text = re.sub(r'\^\s+', '^', text)
  if not _GRAMMAR.fullmatch(text):
    return None
  sides: list[list[str]] = [[]]
  for part in _PART.findall(text):
    if part == '/':
      sides.append([])
      continue
    name = part if part.startswith('^') else _name(part)
    if name is None:
      return None
    sides[-1].append(name)
  if not any(re.search('[^^0-9-]', name) for side in sides for name in side):
    return None
  return tuple(' '.join(sorted(side)) for side in sides)


def _name(word: str) -> str | None:
  if len(word) == 1:
    return _UNITS.get(word)
  for spelling in (word, word.lower(), word.lower().removesuffix('s')):
    if spelling in _UNITS:
      return _UNITS[spelling]
  return None
