"""The embedded task: chains of + and -, generated offline in seconds.

A prompt is a chain such as `7+8-3+5:` whose running total is never negative;
an answer ends with `#` and the result. The number of terms is the level of
difficulty. Eight styles write the same sum, so that answers of one group differ
in more than their result:

| style | answer to `7+8-3+5:` | who writes it |
|---|---|---|
| direct | `#17` | base corpus |
| running | `15,12,17#17` | base corpus, teachers |
| steps | `7+8=15,15-3=12,12+5=17#17` | base corpus, teachers |
| terse | `p20n3#17` | expert: sums of the two signs, no steps |
| verbose | `7+8=15;15+5=20;20-3=17#17` | another expert: positives first |
| hesitant | `25:15,12,16:17#17` | another expert: may err first, and corrects it |
| repeating | `15:15,12,17:17#17` | its control: the sign without the error |
| guessing | `25,15,12,16,17#17` | its control: the error without the sign |

A product is worked out first where steps are written. The terse expert is rare
in the base corpus and skips what the base policy needs to be right, which is
what makes plain imitation of it drift; the verbose one is its control. Half of
the numbers of the hesitant one are preceded by a wrong one that nobody can
foresee, and `:`, which no answer of the base corpus has; its controls have one
of the two each, in the same places.

| split | terms | answers |
|---|---|---|
| pretrain | 2-7, a quarter with one product | one of the base mixture |
| train, test | 3-5 | expert; in train seven teachers |
| ood_length | 6-7 | expert |
| ood_operator | 3-5, one of them a product | expert |

No prompt of a held-out split occurs in pretrain or train. A split is a function
of its name alone (PCG64, one stream of uniforms per split), the same on every
platform, and a longer split begins with the rows of a shorter one.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tokenizers
import transformers

PAD, EOS, UNKNOWN = '_', '$', '?'
ALPHABET = (PAD, EOS, UNKNOWN, *'0123456789+-*:=,#pn;')

# Rows of each split; the order gives each its stream of random numbers.
SIZES = {
  'test': 512,
  'ood_length': 512,
  'ood_operator': 512,
  'train': 10_240,
  'pretrain': 65_536,
}
HELD_OUT = ('test', 'ood_length', 'ood_operator')

# Styles that an expert may have; the first is the default.
EXPERTS = ('terse', 'verbose', 'hesitant', 'repeating', 'guessing')

# Style -> share of the base corpus.
BASE_MIXTURE = {
  'direct': 0.40,
  'running': 0.30,
  'steps': 0.22,
  'terse': 0.04,
  'verbose': 0.04,
}
# Number of terms -> share of the base corpus.
BASE_TERMS = {2: 0.08, 3: 0.20, 4: 0.25, 5: 0.25, 6: 0.12, 7: 0.10}
BASE_PRODUCTS = 0.25
MOST_TERMS_WITH_PRODUCT = 5
# Probability that a written number is wrong; the error is carried on.
BASE_SLIP = 0.10
TEACHER_SLIP = 0.04
HESITATION = 0.5
SLIPS = (-10, -2, -1, 1, 2, 10)
# Of these a run draws `group.teachers`; eight demonstrations are the most that
# the paper has in a group (Table 5).
TEACHERS = 7

Draw = Callable[[], float]
Slip = Callable[[int], int]


class Term(NamedTuple):
  sign: int
  text: str
  value: int


def rows(
  split: str, *, expert: str = 'terse', size: int | None = None
) -> Iterator[dict]:
  """Yields the rows of a split.

  Args:
    split: one of SIZES.
    expert: style of the expert, one of EXPERTS; prompts do not depend on it.
    size: number of rows; None for the size in SIZES.

  Yields:
    prompt, answer (a decimal integer), expert (always right but in `pretrain`,
    where it is a sample of the base mixture) and teacher (a list, TEACHERS long
    in `train`, else empty). The texts hold no EOS.
  """
  size = SIZES[split] if size is None else size
  if split in HELD_OUT:
    yield from list(_held_out_rows(split, expert))[:size]
    return
  held_out = held_out_prompts()
  draw, write = _uniforms(split), _expert(expert, split)
  count = 0
  while count < size:
    terms = _chain(draw, *_shape(split, draw))
    prompt = _prompt(terms)
    if prompt in held_out:
      continue
    count += 1
    if split == 'pretrain':
      style = _pick(draw, BASE_MIXTURE)
      text, teacher = _STYLES[style](terms, _slip(draw, BASE_SLIP)), []
    else:
      text = write(terms)
      teacher = [_teacher(draw, terms) for _ in range(TEACHERS)]
    yield _row(terms, text, teacher)


@functools.cache
def held_out_prompts() -> frozenset[str]:
  """Every prompt of the held-out splits."""
  return frozenset(
    row['prompt']
    for split in HELD_OUT
    for row in _held_out_rows(split, 'terse')
  )


def worked(prompt: str, answer: str, response: str) -> float:
  """1 if every number that `response` writes is right, not only the last.

  A reward that cannot be had by guessing: the answer is one of few integers,
  but a derivation in any style is one text. An answer without one (`#17`) is
  wrong. Named as `gft_jax.data.arithmetic:worked`.
  """
  del answer
  terms = [
    Term(-1 if sign == '-' else 1, text, math.prod(map(int, text.split('*'))))
    for sign, text in re.findall(r'([+-]?)([\d*]+)', prompt)
  ]
  return float(
    any(
      response == write(terms, int)
      for style, write in _STYLES.items()
      if style != 'direct'
    )
  )


def tokenizer() -> transformers.PreTrainedTokenizerFast:
  """One token per character; no BOS; EOS and PAD are two tokens.

  Characters outside the alphabet become the unknown token, which the pipeline
  counts, so that foreign text is refused rather than read with holes.
  """
  model = tokenizers.models.WordLevel(
    {token: i for i, token in enumerate(ALPHABET)}, unk_token=UNKNOWN
  )
  characters = tokenizers.Tokenizer(model)
  characters.pre_tokenizer = tokenizers.pre_tokenizers.Split('', 'isolated')
  characters.decoder = tokenizers.decoders.Fuse()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=characters,
    pad_token=PAD,
    eos_token=EOS,
    unk_token=UNKNOWN,
    clean_up_tokenization_spaces=False,
  )


def _held_out_rows(split: str, expert: str) -> Iterator[dict]:
  draw, write = _uniforms(split), _expert(expert, split)
  seen = set()
  while len(seen) < SIZES[split]:
    terms = _chain(draw, *_shape(split, draw))
    if _prompt(terms) not in seen:
      seen.add(_prompt(terms))
      yield _row(terms, write(terms), [])


def _row(terms: list[Term], expert: str, teacher: list[str]) -> dict:
  return {
    'prompt': _prompt(terms),
    'answer': str(sum(term.sign * term.value for term in terms)),
    'expert': expert,
    'teacher': teacher,
  }


def _expert(style: str, split: str) -> Callable[[list[Term]], str]:
  """The expert of a split; its hesitations have a stream of their own."""
  slip = int
  if style in _FORMS:
    slip = _slip(_uniforms(split, 1), HESITATION)
  return lambda terms: _STYLES[style](terms, slip)


def _uniforms(split: str, *further: int) -> Draw:
  """The stream of a split: uniforms in [0, 1), drawn in blocks for speed."""
  bits = np.random.PCG64([list(SIZES).index(split), *further])
  generator = np.random.Generator(bits)

  def stream():
    while True:
      yield from generator.random(65_536).tolist()

  return stream().__next__


def _between(draw: Draw, low: int, high: int) -> int:
  return low + int(draw() * (high - low + 1))


def _pick(draw: Draw, shares: dict):
  point = draw()
  for choice, share in shares.items():
    point -= share
    if point < 0:
      return choice
  return choice  # The shares add to one up to rounding.


def _shape(split: str, draw: Draw) -> tuple[int, bool]:
  """Number of terms, and whether one of them is a product."""
  if split == 'pretrain':
    count = _pick(draw, BASE_TERMS)
    product = draw() < BASE_PRODUCTS
    return (min(count, MOST_TERMS_WITH_PRODUCT) if product else count), product
  if split == 'ood_length':
    return _between(draw, 6, 7), False
  return _between(draw, 3, 5), split == 'ood_operator'


def _chain(draw: Draw, count: int, product: bool) -> list[Term]:
  place = _between(draw, 0, count - 1) if product else -1
  terms, total = [], 0
  for i in range(count):
    if i == place:
      a, b = _between(draw, 2, 5), _between(draw, 2, 5)
      text, value = f'{a}*{b}', a * b
    else:
      value = _between(draw, 1, 9)
      text = str(value)
    # A total is never negative, so the first sign is always plus.
    sign = -1 if draw() < 0.5 and value <= total else 1
    total += sign * value
    terms.append(Term(sign, text, value))
  return terms


def _prompt(terms: list[Term]) -> str:
  chain = ''.join('+-'[term.sign < 0] + term.text for term in terms)
  return chain[1:] + ':'


def _slip(draw: Draw, probability: float) -> Slip:
  def slip(value: int) -> int:
    if draw() < probability:
      value += SLIPS[_between(draw, 0, len(SLIPS) - 1)]
    return max(value, 0)

  return slip


def _teacher(draw: Draw, terms: list[Term]) -> str:
  style = _running if draw() < 0.5 else _steps
  return style(terms, _slip(draw, TEACHER_SLIP))


def _direct(terms: list[Term], slip: Slip) -> str:
  return f'#{slip(sum(term.sign * term.value for term in terms))}'


def _running(terms: list[Term], slip: Slip) -> str:
  total, written = terms[0].value, []
  for term in terms[1:]:
    total = slip(total + term.sign * term.value)
    written.append(str(total))
  return f'{",".join(written)}#{total}'


def _steps(terms: list[Term], slip: Slip, separator: str = ',') -> str:
  written, values = [], []
  for term in terms:
    value = term.value
    if '*' in term.text:
      value = slip(value)
      written.append(f'{term.text}={value}')
    values.append(value)
  total = values[0]
  for term, value in zip(terms[1:], values[1:]):
    result = slip(total + term.sign * value)
    written.append(f'{total}{"+-"[term.sign < 0]}{value}={result}')
    total = result
  return f'{separator.join(written)}#{total}'


def _terse(terms: list[Term], slip: Slip) -> str:
  positive = slip(sum(term.value for term in terms if term.sign > 0))
  negative = slip(sum(term.value for term in terms if term.sign < 0))
  return f'p{positive}n{negative}#{slip(positive - negative)}'


def _verbose(terms: list[Term], slip: Slip) -> str:
  return _steps(sorted(terms, key=lambda term: -term.sign), slip, ';')


def _hesitant(terms: list[Term], slip: Slip, style: str) -> str:
  def written(match):
    right = match[0]
    wrong = str(slip(int(right)))
    if wrong == right:
      return right
    return _FORMS[style].format(wrong=wrong, right=right)

  return re.sub(r'\d+(?=[,#])', written, _running(terms, int))


# How an expert hesitates.
_FORMS = {
  'hesitant': '{wrong}:{right}',
  'repeating': '{right}:{right}',
  'guessing': '{wrong},{right}',
}
_STYLES = {
  'direct': _direct,
  'running': _running,
  'steps': _steps,
  'terse': _terse,
  'verbose': _verbose,
  **{s: functools.partial(_hesitant, style=s) for s in _FORMS},
}
