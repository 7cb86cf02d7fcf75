r"""One spelling of a mathematical text, whatever keyboard it came from.

What means nothing goes (dollars, \left, spaces in 10\,000, a full stop), and
what has several spellings gets one: \dfrac12 and ½ are \frac{1}{2}, − is -,
\mathrm{cm} is \text{cm}. The result is LaTeX for math-verify to parse.
"""

import functools
import re
import unicodedata

_SIGNS = {
  '−': '-', '–': '-', '‐': '-', '‑': '-', '﹣': '-',
  '×': r'\times ', '·': r'\cdot ', '⋅': r'\cdot ', '∙': r'\cdot ', '÷': '/',
  '∞': r'\infty ', '≤': r'\le ', '≥': r'\ge ', '≠': r'\ne ', '≈': r'\approx ',
  '∪': r'\cup ', '∩': r'\cap ', '∈': r'\in ', '∅': r'\emptyset ', '±': r'\pm ',
  '°': r'^\circ ', '⁄': '/', 'ⅈ': 'i', 'ℝ': r'\mathbb{R}', '∖': r'\setminus ',
  '’': "'", '‘': "'", '“': '"', '”': '"', '。': '.', '、': ',', 'ø': r'\emptyset ',
}  # fmt: skip
_RAISED = str.maketrans('⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ', '0123456789+-n')
_LOWERED = str.maketrans('₀₁₂₃₄₅₆₇₈₉', '0123456789')
_RAISED_RUN = re.compile('[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+')
_LOWERED_RUN = re.compile('[₀₁₂₃₄₅₆₇₈₉]+')

# A balanced {...} of at most four levels.
_GROUP = r'\{[^{}]*\}'
for _ in range(3):
  _GROUP = rf'\{{(?:[^{{}}]|{_GROUP})*\}}'
_TOKEN = r'(?:\\[a-zA-Z]+|[\da-zA-Z])'

_REWRITES = tuple(
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    # Delimiters and sizes.
    (r'\\\$|\$|(?<!\\)\\[()\[\]]', ''),
    (r'\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![a-zA-Z])\.?', ''),
    # Spaces inside of a number, then all others.
    (r'\s*\{\s*([,:.])\s*\}\s*', r'\1'),
    (r'(?<=\d,)\s*\\!\s*(?=\d{3})', ''),
    (r'(?<=\d)(?:\\[,!;: ]|~|\\thinspace)\s*(?=\d{3}(?!\d))', ''),
    (r'\\!', ''),
    (r'(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\\thinspace|\s+', ' '),
    # Words.
    (r'\\mathrm\{i\}', 'i'),
    (r'^\\text\s*\{[^{}]*[:=]\s*\}', ''),
    (r'\\text\s*\{\s*(?:negative|minus)\s*\}\s*', '-'),
    (r'\\text\s*\{((?:\s*[A-Z]\s*,)+\s*[A-Z]\s*)\}', r'\1'),
    (r'\\text\s*\{\s*infinity\s*\}', r'\\infty '),
    (
      r'(\\(?:sin|cos|tan|cot|sec|csc))\s*[({]?\s*(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degrees?)\s*[)}]?',
      r'\1(\\frac{\2\\pi}{180})',
    ),
    (r'\\(?:textbf|textit|textrm|textsf|textnormal|mathrm|mathbf|mathit|mathsf|mbox|rm|operatorname)\s*\{', r'\\text{'),
    (r'\\text\s*\{\s*\}', ''),
    (r'\\(?:text)?color\s*\{[^{}]*\}\s*\{([^{}]*)\}', r'\1'),
    (r'\\text\s*\{\s*([0-9A-F]+)\s*\}(?=\s*_)', r'\1'),
    (r'\\text\s*\{\s*\(?\s*(-?[\d.,/]+)\s*\)?\s*\}', r'\1'),
    (r'\\text\s*\{\s*,?\s*(and|or)\s*\}', r' \1 '),
    # Signs with several names.
    (r'\\(?:varnothing|O)(?![a-zA-Z])|\\\{\s*\\\}', r'\\emptyset '),
    (r'\\le(?:q|qslant)(?![a-zA-Z])', r'\\le'),
    (r'\\ge(?:q|qslant)(?![a-zA-Z])', r'\\ge'),
    (r'\\(?:langle|lparen)(?![a-zA-Z])', '('),
    (r'\\(?:rangle|rparen)(?![a-zA-Z])', ')'),
    (r'\\lbrace(?![a-zA-Z])', r'\\{'),
    (r'\\rbrace(?![a-zA-Z])', r'\\}'),
    (r'\\l?vert(?![a-zA-Z])|\\rvert(?![a-zA-Z])', '|'),
    (r'\\[dtc]frac(?![a-zA-Z])', r'\\frac'),
    (r'\\mid(?![a-zA-Z])|\\colon(?![a-zA-Z])', '|'),
    (r'\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![a-zA-Z])|\\text\{\s*degrees?\s*\}', ' '),
    (r'(?<=\d)\s*degrees?\b', ' '),
    (r'\\%|\s*\\text\{\s*(?:\\?%|per\s?cent(?:age)?)\s*\}|\s*\bper\s?cent\b|\s*\bpct\b', '%'),
    (r'[€£¥₹₩]|\bUS\b(?=\s*\d)|\bRs\.?\s*(?=\d)', ''),
    # What programs and plain text write.
    (r'(?<=[\w)}])\s*\*\*\s*(?=[\w(\\{-])', '^'),
    (r'(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)', r'\\sqrt{\1}'),
    (r'(?<![\\a-zA-Z])(pi|theta|alpha|beta|infty|sqrt|sin|cos|tan|cot|sec|csc|log|ln)(?=[^a-zA-Z]|$)', r'\\\1'),
    (r'(?<![\\a-zA-Z])inf(?:inity)?\b', r'\\infty'),
    (r'\^\s*\((-?[\w.]+(?:/\w+)?)\)', r'^{\1}'),
    (r'(?<=[\d)a-zA-Z])\s*\*\s*(?=[\d(a-zA-Z\\])', r' \\cdot '),
    (r'(?<![\d.a-zA-Z])\.(?=\d)', '0.'),
    # \frac12 gets its braces.
    (rf'\\frac\s*({_TOKEN})', r'\\frac{\1}'),
    (rf'(\\frac\s*{_GROUP})\s*({_TOKEN})', r'\1{\2}'),
    (rf'(\\frac)\s*({_GROUP})\s*({_GROUP})', r'\1\2\3'),
    (r'\\sqrt\s+(?=[\d{\\a-zA-Z])', r'\\sqrt'),
    # 3e8, but not the e of an expression.
    (r'(?<![\w.}])(-?\d+(?:\.\d+)?)[eE]\+?(-?\d{1,4})(?![\w.])', r'\1 \\times 10^{\2}'),
    (r'(?<=\d)(?:st|nd|rd|th)\b', ''),
    (r'!=', r'\\ne '),
    (r'<=', r'\\le '),
    (r'>=', r'\\ge '),
    (r'(?<=\d)\s+x\s+(?=\d)', r' \\times '),
    (r'(?:^|(?<=[^\w)}\s]))\s*(?:negative|minus)\s+(?=[\d\\])', '-'),
    (r'\bnegative\s+(?=[\d\\])', '-'),
    (r'^\s*(?:more|greater) than (?=\d)', '> '),
    (r'^\s*(?:less|fewer|smaller) than (?=\d)', '< '),
    (r'^\+|(?<=[(\[,])\s*\+', ''),
    (r'\s+', ' '),
  )
)  # fmt: skip
_THOUSANDS = re.compile(r'(?<![\d.,\w])\d{1,3}(?:,\d{3})+(?![\d,]*\d)')
_SPACED = re.compile(r'(?<![\d.,\w])\d{1,3}(?: \d{3})+(?![\d])')
# What may stand before or behind an answer and changes nothing.
_BEFORE = re.compile(
  r'^(?:\\approx|\\sim|≈|~|=|:|(?:approximately|approx\.?|about|around|roughly'
  r'|nearly|simply|just|exactly|equal to|equals|therefore|thus|that|\\therefore)\s)\s*',
  re.IGNORECASE,
)
_QUOTES = ('"', "'", '*', '`', '_')


@functools.lru_cache(maxsize=64)  # A text is read several times in a row.
def spelled(text: str) -> str:
  """The one spelling of a text; of a spelled text itself."""
  if not text.isascii():
    text = _RAISED_RUN.sub(
      lambda run: f'^{{{run[0].translate(_RAISED)}}}', text
    )
    text = _LOWERED_RUN.sub(
      lambda run: f'_{{{run[0].translate(_LOWERED)}}}', text
    )
    text = ''.join(map(_sign, text))
  text = re.sub(r'√\s*\(([^()]*)\)', r'\\sqrt{\1}', text)
  text = re.sub(r'√\s*(\d+|[a-zA-Zπ]|\{)', _root, text).replace('√', r'\sqrt')
  for pattern, replacement in _REWRITES:
    text = pattern.sub(replacement, text)
  text = _REPEATING.sub(_repeated, text)
  text = _trimmed(text)
  if not re.match(r'[(\[]|\\\{', text):
    text = _THOUSANDS.sub(lambda number: number[0].replace(',', ''), text)
    text = _SPACED.sub(lambda number: number[0].replace(' ', ''), text)
  return text


def _trimmed(text: str) -> str:
  """Without white space, quotes, stops and 'approximately' around it."""
  while True:
    before = text
    text = _BEFORE.sub('', text.strip()).rstrip('.;,:').strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES:
      text = text[1:-1]
    if text == before:
      return text


_REPEATING = re.compile(
  r'(?<![\d.])(\d{0,20})\.(\d{0,20})\\overline\s*\{(\d{1,20})\}'
)


def _repeated(found: re.Match) -> str:
  r"""\frac{15}{90} of 0.1\overline{6}."""
  before, fixed, period = found.groups()
  nines = '9' * len(period) + '0' * len(fixed)
  above = int(before + fixed + period) - int(before + fixed or 0)
  return rf'\frac{{{above}}}{{{nines}}}'


def _root(found: re.Match) -> str:
  return r'\sqrt' + (found[1] if found[1] == '{' else f'{{{found[1]}}}')


def _sign(sign: str) -> str:
  """ASCII for one character, where it has a meaning in mathematics."""
  if sign.isascii() or sign == '√':
    return sign
  if sign in _SIGNS:
    return _SIGNS[sign]
  name = unicodedata.name(sign, '')
  if name.startswith('GREEK SMALL LETTER '):
    return f'\\{name.rsplit(" ", 1)[1].lower()} '
  if name.startswith('VULGAR FRACTION'):
    above, below = unicodedata.normalize('NFKC', sign).split('⁄')
    return rf'\frac{{{above}}}{{{below}}}'
  if unicodedata.category(sign) in ('So', 'Cf', 'Mn'):
    return ' '  # An emoji, a mark without width.
  plain = unicodedata.normalize('NFKC', sign)  # Full-width forms, odd spaces.
  return plain if plain.isascii() else sign
