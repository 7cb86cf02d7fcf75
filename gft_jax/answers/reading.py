r"""What a text finally says: one reading for every reward and every vote.

| step | what is read |
|---|---|
| 1 | thoughts are left out; a thought without an end has no answer |
| 2 | of `<answer>18</answer>` what stands in the last such tag |
| 3 | the last \boxed{18}; boxes that a comma or an 'or' joins are one answer |
| 4 | what follows the last `####` |
| 5 | the sentence behind the last 'answer is', 'Answer:' or heading 'Answer' |
| 6 | the only line in bold, or the only bold words of the last line |
| 7 | else the whole text, of which a reward may take the end |
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from gft_jax.thoughts import without_thoughts

# The longest text that regular expressions and parsers see: they are
# superlinear, and an answer stands at the end.
MAX_CHARACTERS = 8192
# What GSM8K puts before a final answer.
MARK = '####'


class Answer(NamedTuple):
  """What a text finally says.

  Attributes:
    text: without white space around it; never empty.
    marked: it is stated as the answer, by steps 2 to 6.
  """

  text: str
  marked: bool


def final(response: str) -> str | None:
  """The text of what a response finally says; None: it has no answer."""
  said = read(response)
  return said.text if said else None


def read(response: str) -> Answer | None:
  """What a response finally says; None: it has no answer.

  Only the last `MAX_CHARACTERS` characters behind its thoughts are read.
  """
  return next(readings(response), None)


def readings(response: str, *, bold: bool = True) -> Iterator[Answer]:
  """The final answer, and what would be it without it, in the steps' order.

  Args:
    response: the text.
    bold: whether there is a step 6.
  """
  text = without_thoughts(response)
  if text is None:
    return
  text = _SPECIAL.sub(' ', text[-MAX_CHARACTERS:])
  tagged = in_tag(text)
  for step in (_boxed, after_mark, _stated):
    found = step(text if tagged is None else tagged)
    if found == '':
      return
    if found:
      yield Answer(found, True)
  if tagged is not None:
    if tagged:
      yield Answer(tagged, True)
    return
  in_bold = _in_bold(text) if bold else None
  if in_bold:
    yield Answer(in_bold, True)
  text = _affirmed(_behind_retractions(_unemphasised(text)))
  text = re.sub(r'^#+\s+', '', text.strip())
  if text:
    yield Answer(text, False)


def last_boxed(text: str) -> str | None:
  r"""The content of the \boxed{...}, or \fbox{...}, that closes last."""
  boxes = _boxes(text)
  return boxes[-1].content if boxes else None


def after_mark(text: str) -> str | None:
  """What follows the last `####`, to the end of its line.

  A line without a digit that others follow is a heading of Markdown.
  """
  _, mark, rest = text.rpartition(MARK)
  line, _, others = rest.strip().partition('\n')
  heading = bool(others.strip()) and not re.search(r'\d', line)
  return _unemphasised(line).strip() if mark and not heading else None


# Tokens of chat templates that end a turn.
_SPECIAL = re.compile(r'<\|[a-zA-Z_]{1,20}\|>|</s>|<eos>|<end_of_turn>')


class _Box(NamedTuple):
  start: int
  end: int
  content: str


def _boxes(text: str) -> list[_Box]:
  """Boxes that close and stand in no other, in the order of the text."""
  opened, found = [], []
  # A brace behind a backslash is a sign, not a bracket.
  for brace in re.finditer(
    r'\\(?:boxed|fbox|framebox)\s*\{|\\.|[{}]', text, re.DOTALL
  ):
    if brace[0].endswith('{') and brace[0] != r'\{':
      opened.append(brace)
    elif brace[0] == '}' and opened:
      start = opened.pop()
      if start[0] != '{':
        while found and found[-1].start > start.start():
          found.pop()
        content = text[start.end() : brace.start()].strip()
        found.append(_Box(start.start(), brace.end(), content))
  return found


# What joins two boxes to one answer: a comma, 'or', 'and $y ='.
_JOINT = re.compile(
  r'(?:[\s$]|\\[()\[\],;])*(?P<joint>,|;|\b(?:and|or)\b|\\text\{\s*(?:and|or)\s*\})'
  r'(?:[\s$,]|\\[()\[\],;]|\b(?:and|or)\b)*(?:[a-zA-Z]\w?\s*=\s*)?'
)


def _boxed(text: str) -> str | None:
  """The last box with those that are joined to it; else one left open."""
  boxes = _boxes(text)
  if not boxes:
    return _left_open(text)
  contents = [boxes[-1].content]
  for before, after in zip(boxes[-2::-1], boxes[:0:-1]):
    gap = text[before.end : after.start]
    joint = _JOINT.fullmatch(gap) if len(gap) < 40 else None
    if not joint:
      break
    word = ' or ' if 'or' in joint['joint'] else ', '
    if before.content != contents[0]:
      contents[:0] = [before.content, word]
  inner = last_boxed(contents[0]) if len(contents) == 1 else None
  return ''.join(contents) if inner is None else inner


def _left_open(text: str) -> str | None:
  r"""Of '\boxed{42' or '\boxed 42' what follows, to the end of the line."""
  found = re.findall(
    r'\\(?:boxed|fbox|framebox)\s*(?:\{([^\n]*)|([^\s{$]+))', text
  )
  if not found:
    return None
  return ''.join(found[-1]).strip().rstrip('$').strip()


def in_tag(text: str) -> str | None:
  """What stands in the last answer tag that closes; else in one left open."""
  closed = [mark.start() for mark in _TAG_END.finditer(text)]
  opened = [mark.end() for mark in _TAG.finditer(text)]
  if closed:  # The prompt may have opened it.
    before = [start for start in opened if start <= closed[-1]]
    return text[before[-1] if before else 0 : closed[-1]].strip()
  return text[opened[-1] :].strip() if opened else None


_TAG = re.compile(r'(?i:<(?:(?:final_?)?answer|solution)>)|\[ANSWER\]')
_TAG_END = re.compile(r'(?i:</(?:(?:final_?)?answer|solution)>)|\[/ANSWER\]')

# 'The answer is', 'the answer to both is', 'Answer:', and their kin.
_STATES = re.compile(
  r'\banswers?\b(?!\s+(?:choices|options))'
  r'(?:(?:(?!\b(?:because|since|so|which)\b)[^.:=\n]){0,60}?\b(?:is|are|be|was)\b\s*:?'
  r'|[^.:=\n]{0,40}?["\']?\s*[:=])[ \t]*'
  r'|答案(?:是|为|為|[:：])\s*',
  re.IGNORECASE,
)
# A line of its own: '## Final answer', 'Answer:'.
_HEADING = re.compile(
  r'^[ \t]*(?:#{1,6}[ \t]*)?(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t]*:?[ \t]*$',
  re.IGNORECASE | re.MULTILINE,
)
_NOT = r"(?:\b(?:not|never|cannot|instead of|rather than|unlikely(?: to be)?)\b|n't\b)"
# Around the words that announce an answer: they announce none.
_NO_ANSWER = re.compile(
  rf"{_NOT}|\b(?:wrong|incorrect|don't think|do not think|doubt)\b",
  re.IGNORECASE,
)
_WRONG = re.compile(
  rf'^\s*{_NOT}|,?\s+(?:which\s+)?(?:is|was)\s+(?:wrong|incorrect|false)\b',
  re.IGNORECASE,
)
# 'It is not 5', 'not $64': a number that is none.
_DENIED = re.compile(
  rf'{_NOT}\s+(?:[a-z]+\s+){{0,2}}[$\\]?-?\d+(?:[.,]\d+)*', re.IGNORECASE
)
# What a denial goes on with: 'not 5, it is 6'.
_INSTEAD = re.compile(r';|,?\s+(?:but|rather)\b|,\s+it\b')
_RETRACTED = re.compile(
  r'(?:^|[.!?,;\n]|\s[-–—])\s{0,3}(?:no,? )?(?:wait|actually|correction|sorry|scratch that)\b',
  re.IGNORECASE,
)


def _affirmed(text: str) -> str:
  """Without the numbers and sentences that a text denies."""
  for mark in reversed([*_STATES.finditer(text)]):
    end = _SENTENCE.match(text, mark.end())
    stop = end.end() if end else mark.end()
    if _is_denied(text, mark, stop):
      other = _INSTEAD.search(text, mark.end(), stop)
      text = text[: mark.start()] + text[other.start() if other else stop :]
  return _DENIED.sub(' ', text)


def _is_denied(text: str, mark: re.Match, stop: int) -> bool:
  before = re.split(
    r'[.!?,;\n]', text[max(0, mark.start() - 30) : mark.start()]
  )
  announced = f'{before[-1]} {mark[0]}'
  sentence = text[mark.end() : stop]
  return bool(_NO_ANSWER.search(announced) or _WRONG.search(sentence))


def _behind_retractions(text: str) -> str:
  """What follows the last 'Wait', where it says a number or letter anew."""
  *_, last = _RETRACTED.split(text)
  return last if re.search(r'\d|\\[a-z]|\b[A-J]\b', last) else text


_DISPLAY = re.compile(r'\s{0,40}(?:\$\$(.+?)\$\$|\\\[(.+?)\\\])', re.DOTALL)
# The end of a sentence, but not behind an abbreviation.
_SENTENCE = re.compile(
  r'(.+?)(?:(?<!\bapprox)(?<!\bca)(?<!\bMr)(?<!\bDr)(?<!\bSt)(?<!\bMrs)'
  r'\.(?=\s|$)|\n|$)'
)


def _stated(text: str) -> str | None:
  """The sentence, line or display behind the last words that announce it."""
  text = _behind_retractions(_unemphasised(text))
  marks = [*_STATES.finditer(text), *_HEADING.finditer(text)]
  for mark in sorted(marks, key=lambda m: m.end(), reverse=True):
    rest = text[mark.end() :]
    display = _DISPLAY.match(rest)
    if display:
      return (display[1] or display[2]).strip()
    line = re.sub(r'^(?:[-*•>]\s+)+', '', rest.lstrip())
    sentence = _SENTENCE.match(line)
    stop = len(text) - len(line) + (sentence.end() if sentence else 0)
    if sentence and sentence[1].strip() and not _is_denied(text, mark, stop):
      found = _DENIED.sub(' ', sentence[1]).strip().rstrip('!').strip()
      # Of JSON, {"answer": 18}.
      return (found.strip('"}\' ') if '"' in mark[0] else found) or None
  return None


_BOLD = re.compile(r'(?<![\w)*])\*\*(?=\S)(.+?)(?<=\S)\*\*(?![\w(*])')


# A line that is bold, holds a number and is no heading.
_BOLD_LINE = re.compile(
  r'^[ \t]*\*\*(?!(?:step|part|case|solution|problem|question|example)\b)'
  r'([^*\n]{1,120})(?<!:)\*\*[.]?[ \t]*$',
  re.IGNORECASE | re.MULTILINE,
)


def _in_bold(text: str) -> str | None:
  """The only line in bold, or the only bold words of the last line.

  Those are no item of a list, no label and no denial.
  """
  alone = _BOLD_LINE.findall(text)
  if len(alone) == 1 and re.search(r'\d', alone[0]):
    return alone[0].strip()
  lines = text.strip().splitlines()
  line = lines[-1] if lines else ''
  bold = _BOLD.findall(line)
  if len(bold) != 1 or re.match(r'\s*(?:[-*•]\s|\d+[.)]\s)', line):
    return None
  label = bold[0].endswith(':') or f'{bold[0]}**:' in line
  before = line.partition('**')[0]
  return None if label or _NO_ANSWER.search(before[-40:]) else bold[0].strip()


def _unemphasised(text: str) -> str:
  """Without the stars, underlines and backticks of Markdown."""
  text = re.sub(
    r'~~[^~\n]*~~|</?(?:b|strong|i|em|u|p|span)>|<<[^<>\n]*>>', '', text
  )
  text = re.sub(r'^\s*```\w*\s*$', '', text, flags=re.MULTILINE)
  text = _BOLD.sub(r'\1', text)
  text = re.sub(
    r'(?<![\w*\\])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])', r'\1', text
  )
  text = re.sub(r'(?<![\w_])__(?=\S)(.+?)(?<=\S)__(?![\w_])', r'\1', text)
  return re.sub(r'`([^`\n]+)`', r'\1', text)
