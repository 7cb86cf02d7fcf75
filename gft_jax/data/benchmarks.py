"""Public benchmarks as data: where prompt and answer stand, and how to grade.

A benchmark is a file of its publishers as it is (JSONL or parquet). `rows` turns
it into rows of prompt and answer, which the file formats of this project share.
"""

import pathlib
import string
from typing import Any, NamedTuple

from gft_jax.config import one_of, require
from gft_jax.data import files


class Benchmark(NamedTuple):
  """One public file.

  Attributes:
    count: its rows.
    prompt: template over the columns of the file; see `_Template`.
    answer: likewise.
    reward: what `reward.function` grades it with.
  """

  count: int
  prompt: str
  answer: str
  reward: str = 'math'


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
}


def rows(name: str, path: str | pathlib.Path) -> list[dict[str, str]]:
  """The rows of a benchmark, each with `prompt` and `answer`.

  Args:
    name: of BENCHMARKS.
    path: its file.

  Raises:
    ConfigError: no such benchmark or file, a row that has not its columns, or
      another number of rows than was published.
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
      prompt = _render(benchmark.prompt, raw)
      if not prompt:
        raise files.BadRow(f'has nothing for {benchmark.prompt!r}')
      # Two public rows have no answer; the grader counts them as such.
      answer = _render(benchmark.answer, raw)
      found.append({'prompt': prompt, 'answer': answer})
    except files.BadRow as error:
      require(False, f'{path}: row {number} {error}')
  require(
    len(found) == benchmark.count,
    f'{path} has {len(found)} rows, but {name} has {benchmark.count}',
  )
  return found


class _Template(string.Formatter):
  """{column}, or one of

  {column:options}  a list of texts as lines 'A) text'
  {column:letter}   the position of the right one as its letter
  {column:list}     a list of texts with commas
  {column:before}   a text and a line end, or nothing where it is null
  """

  def format_field(self, value: Any, kind: str) -> str:
    letters = string.ascii_uppercase
    if kind == 'options':
      return '\n'.join(f'{a}) {text}' for a, text in zip(letters, value))
    if kind == 'letter':
      return letters[value]
    if kind == 'list':
      return ', '.join(value)
    if kind == 'before':
      return f'{value}\n' if value else ''
    value = files.number_as_text(value)
    if not isinstance(value, str):
      raise TypeError(f'is a {type(value).__name__}, not text')
    return value


def _render(template: str, raw: dict[str, Any]) -> str:
  try:
    text = _Template().vformat(template, (), raw).strip()
  except KeyError as error:
    raise files.BadRow(f'has no column {error}') from None
  except (TypeError, IndexError) as error:
    raise files.BadRow(f'does not fit {template!r}: {error}') from None
  return text
