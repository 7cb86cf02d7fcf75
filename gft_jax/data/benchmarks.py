"""Public benchmarks as data: how to ask, where the answer stands, how to grade.

A benchmark is a file of its publishers as it is (JSONL or parquet). `rows` turns
it into rows of prompt and answer, which the file formats of this project share.
"""

import pathlib
import string
from typing import Any, NamedTuple

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
    prompt: template over the columns of the file; see `_Template`.
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


# Names and columns as in the evaluation of the official code (ZJU-OmniAI/GFT at
# 763384d, verl/utils/reward_score/math_evaluation/data), and mawps_singleop.
BENCHMARKS = {
  'aime24': Benchmark(30, '{problem}', '{answer}'),
  'amc23': Benchmark(40, '{problem}', '{answer}'),
  'college_math': Benchmark(2818, '{question}', '{answer}'),
  'gaokao2023en': Benchmark(385, '{question}', '{answer}'),
  'gsm8k': Benchmark(1319, '{question}', '{answer}'),
  'math_oai': Benchmark(500, '{problem}', '{answer}'),
  'mawps': Benchmark(2065, '{input}', '{target}'),
  'mawps_singleop': Benchmark(562, '{input}', '{target}'),
  # The answer is in a box of the solution.
  'minerva_math': Benchmark(272, '{problem}', '{solution}'),
  'mmlu_stem': Benchmark(
    3018, '{question}\n{choices:options}', '{answer:letter}', 'choice'
  ),
  'olympiadbench': Benchmark(
    675, '{context:before}{question}', '{final_answer:list}'
  ),
  'sat_math': Benchmark(32, '{question}\n{options}', '{Answer}', 'choice'),
  'svamp': Benchmark(1000, '{Body} {Question}', '{Answer}'),
  # Its test set has 7,686 rows and the subset of most papers 1,000.
  'tabmwp': Benchmark(
    None,
    '{table_title:before}{table}\n{question}{choices:choices}',
    '{answer}',
  ),
}

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
      if not prompt:
        raise files.BadRow(f'has nothing for {benchmark.prompt!r}')
      # Two public rows have no answer; the grader counts them as such.
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


class _Template(string.Formatter):
  """{column}, or one of

  {column:options}  a list of texts as lines 'A) text'
  {column:letter}   the position of the right one as its letter
  {column:list}     a list of texts with commas
  {column:before}   a text and a line end, or nothing where it is null
  {column:choices}  a list of texts as one more line, or nothing where it is null
  """

  def format_field(self, value: Any, format_spec: str) -> str:
    kind = format_spec
    letters = string.ascii_uppercase
    if kind in ('options', 'list', 'choices') and value is not None:
      if not isinstance(value, list) or len(value) > len(letters):
        raise TypeError(f'is no list of at most {len(letters)} texts')
    if kind == 'options':
      return '\n'.join(f'{a}) {text}' for a, text in zip(letters, value))
    if kind == 'letter':
      if not isinstance(value, int) or not 0 <= value < len(letters):
        raise TypeError(f'has {value!r}, which is no place in a list')
      return letters[value]
    if kind == 'list':
      return ', '.join(value)
    if kind == 'before':
      return f'{value}\n' if value else ''
    if kind == 'choices':
      return f'\nChoices: {", ".join(value)}' if value else ''
    value = files.number_as_text(value)
    if not isinstance(value, str):
      raise TypeError(f'is a {type(value).__name__}, not text')
    return value


def _render(template: str, raw: dict) -> str:
  try:
    text = _Template().vformat(template, (), raw).strip()
  except KeyError as error:
    raise files.BadRow(f'has no column {error}') from None
  except (TypeError, IndexError) as error:
    raise files.BadRow(f'does not fit {template!r}: {error}') from None
  return text


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
