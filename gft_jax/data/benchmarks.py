"""Public benchmarks as data: how to ask, where the answer stands, how to grade.

A benchmark is a file of its publishers as it is (JSONL or parquet). `rows` turns
it into rows of prompt and answer, which the file formats of this project share.
"""

import pathlib
import re
import string
from typing import NamedTuple

from gft_jax.config import one_of, require
from gft_jax.data import files

# What the paper's evaluation adds to every question, in the user's turn
# (ZJU-OmniAI/GFT at 763384d, math_evaluation/utils.py, qwen-boxed).
INSTRUCTION = (
  'Please reason step by step, and put your final answer within \\boxed{}.'
)


class Benchmark(NamedTuple):
  """One public file.

  Attributes:
    count: its rows; None where files of different sizes are in use.
    prompt: template over the columns of the file; see `_render`.
    answer: likewise.
    reward: what `reward.function` grades it with; `answers.extract` reads the
      votes of maj@k by the same rule.
    instruction: the `data.instruction` of whoever sets none.
  """

  count: int | None
  prompt: str
  answer: str
  reward: str = 'math'
  instruction: str = INSTRUCTION


# Names, columns and prompts as in the evaluation of the official code
# (ZJU-OmniAI/GFT at 763384d, verl/utils/reward_score/math_evaluation: data,
# parser.py, parse_question), and mawps_singleop, a part of its mawps. The prompts
# of all rows are equal; the test has their digests.
BENCHMARKS = {
  'aime24': Benchmark(30, '{problem}', '{answer}'),
  'amc23': Benchmark(40, '{problem}', '{answer}'),
  # 18 references are yes or no.
  'college_math': Benchmark(2818, '{question}{answer:verdict}', '{answer}'),
  # Two rows have no answer; the grader counts them as such.
  'gaokao2023en': Benchmark(385, '{question}', '{answer:*}'),
  'gsm8k': Benchmark(1319, '{question}', '{answer}'),
  'math_oai': Benchmark(500, '{problem}', '{answer}'),
  'mawps': Benchmark(2065, '{input}', '{target}'),
  'mawps_singleop': Benchmark(562, '{input}', '{target}'),
  # The answer is in a box of the solution.
  'minerva_math': Benchmark(272, '{problem}', '{solution}'),
  'mmlu_stem': Benchmark(
    3018,
    '{question}\nAnswer Choices: {choices:options}',
    '{answer:letter}',
    'choice',
  ),
  # The column `context` is null in all rows.
  'olympiadbench': Benchmark(675, '{question}', '{final_answer:list}'),
  # Of 4 rows whose options are written 'A. x B. y' the first bracket stays open.
  'sat_math': Benchmark(
    32,
    '{question}\nAnswer Choices: {options:options}',
    '{Answer}',
    'choice',
  ),
  'svamp': Benchmark(1000, '{Body:sentence} {Question}', '{Answer}'),
  # Its test set has 7,686 rows and the subset of most papers 1,000.
  'tabmwp': Benchmark(
    None,
    'Read the following table {table_title:regarding "*" }and answer a'
    ' question:\n{table}\n{question}{choices: Please select from the following'
    ' options: *}{answer:verdict}',
    '{answer}',
  ),
}

LETTERS = string.ascii_uppercase
# What is asked behind a question whose reference answer is one of the two.
VERDICTS = dict.fromkeys(('true', 'false'), ' (True or False)') | (
  dict.fromkeys(('yes', 'no'), ' (Yes or No)')
)

FORMATS = ('jsonl', 'parquet')

# Other names in use, after `canonical` has spelled them.
ALIASES = {
  'aime': 'aime24',
  'aime2024': 'aime24',
  'amc': 'amc23',
  'gaokao': 'gaokao2023en',
  'math': 'math_oai',
  'math500': 'math_oai',
  'math_500': 'math_oai',
  'minerva': 'minerva_math',
  'olympiad': 'olympiadbench',
  'olympiad_bench': 'olympiadbench',
  'sat': 'sat_math',
}


def canonical(name: str) -> str:
  """The name in BENCHMARKS of what a paper calls 'MATH-500' or 'SAT Math'.

  Raises:
    ConfigError: no such benchmark.
  """
  spelled = name.strip().lower().replace('-', '_').replace(' ', '_')
  spelled = ALIASES.get(spelled, spelled)
  one_of('benchmark', spelled, BENCHMARKS)
  return spelled


def find(folder: str | pathlib.Path, name: str) -> pathlib.Path:
  """The file of a benchmark in a folder, NAME.jsonl or NAME.parquet."""
  paths = [pathlib.Path(folder) / f'{name}.{end}' for end in FORMATS]
  return next((path for path in paths if path.is_file()), paths[0])


def rows(name: str, path: str | pathlib.Path) -> list[dict[str, str]]:
  """The rows of a benchmark, each with `prompt` and `answer`.

  Args:
    name: of BENCHMARKS.
    path: its file.

  Raises:
    ConfigError: no such benchmark or file, a row that has not its columns, no
      row, or another number of rows than was published.
  """
  one_of('benchmark', name, BENCHMARKS)
  benchmark = BENCHMARKS[name]
  path = pathlib.Path(path)
  files.check_exists(path)
  found = []
  for number, raw in files.raw_rows(path):
    try:
      if isinstance(raw, files.BadRow):
        raise raw
      raw = {column: _decoded(value) for column, value in raw.items()}
      prompt = _render(benchmark.prompt, raw)
      answer = _render(benchmark.answer, raw)
      found.append({'prompt': prompt, 'answer': answer})
    except files.BadRow as error:
      require(False, f'{path}: row {number} {error}')
  require(bool(found), f'{path} has no rows')
  require(
    benchmark.count in (None, len(found)),
    f'{path} has {len(found)} rows, but {name} has {benchmark.count}',
  )
  return found


def _render(template: str, raw: dict) -> str:
  """The words of a template, and its columns.

  {column} is a text that is not blank, or a number; other forms are

  {column:sentence}  without space at its ends, with a full stop if it has none
  {column:options}   '(A) x (B) y': of a list, or of a text 'A) x B) y'
  {column:letter}    the position of the right one as its letter
  {column:list}      a list of texts with commas
  {column:verdict}   ' (Yes or No)' or ' (True or False)' where the text is one
                     of these words, or nothing
  {column:a * b}     a text, or a list as Python prints it, in place of the star;
                     nothing where it is null or empty

  Raises:
    BadRow: it lacks a column, or has one of another form.
  """
  text = ''
  for words, column, form, _ in string.Formatter().parse(template):
    text += words
    if column is None:
      continue
    if column not in raw:
      raise files.BadRow(f'has no column {column!r}')
    try:
      text += _formed(raw[column], form or '')
    except files.BadRow as error:
      raise files.BadRow(f'has a column {column!r} that {error}') from None
  return text.strip()


def _formed(value: object, form: str) -> str:
  """A value in a form of `_render`."""
  if form == 'letter':
    if not isinstance(value, int) or not 0 <= value < len(LETTERS):
      raise files.BadRow(f'is {value!r}, no place in a list')
    return LETTERS[value]
  if form == 'options':
    return _options(value)
  if form == 'list':
    return ', '.join(map(str, _listed(value)))
  value = files.number_as_text(value)
  if '*' in form:
    given = value if isinstance(value, str) else _listed(value or [])
    return form.replace('*', str(given)) if given else ''
  if not isinstance(value, str):
    raise files.BadRow(f'is a {type(value).__name__}, not text')
  if form == 'verdict':
    word = value.replace(r'\text', '').strip(' .${}').lower()
    return VERDICTS.get(word, '')
  if not value.strip():
    raise files.BadRow('is blank')
  if form == 'sentence':
    return value.strip().removesuffix('.') + '.'
  return value


def _listed(value: object) -> list:
  if (
    not isinstance(value, list)
    or len(value) > len(LETTERS)
    or not all(isinstance(item, str | int | float) for item in value)
  ):
    raise files.BadRow(f'is no list of at most {len(LETTERS)} texts')
  return value


def _options(value: object) -> str:
  """Options behind letters in brackets, in one line."""
  if isinstance(value, str):
    if not value.lstrip().startswith('A'):
      raise files.BadRow('is no list of options, and does not begin with A')
    return '(' + re.sub(r'(?<= )(?=[B-D]\) )', '(', value.strip())
  lettered = zip(LETTERS, _listed(value))
  return ' '.join(f'({a}) {str(text).strip()}' for a, text in lettered)


def _decoded(value: object) -> object:
  """Text for the bytes of a parquet file, at any depth."""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      raise files.BadRow('is not UTF-8') from None
  if isinstance(value, dict):
    return {key: _decoded(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_decoded(item) for item in value]
  return value
