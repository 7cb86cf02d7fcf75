r"""Tasks of Reasoning Gym as rows, and their own scorers as a reward.

  --set data.path=reasoning_gym/chain_sum reward.function=gft_jax.data.gym:score

A row's `answer` names the question, {"task", "seed", "size", "index"}, beside
the answer in the task's own words: the scorer makes the question again, for what
some tasks know about it is not JSON. The expert is the worked solution where
the task has one, else the answer in tags; tasks without a single right answer
have none.

What a response answers is read by `gft_jax.answers`, as for every reward.

Some scorers hand the answer to `eval`, or to sympy, which does. Model output is
never executed here: for those tasks an answer must match a pattern that can
neither call nor look up anything, or it scores 0.
"""

import functools
import hashlib
import json
import os
import pathlib
import re

from gft_jax.answers import AnswerError, final
from gft_jax.config import ConfigError, nearest, require
from gft_jax.data import cache as cached

try:
  import reasoning_gym
except ModuleNotFoundError:
  raise ConfigError(
    'reasoning-gym is not installed: pip install reasoning-gym'
  ) from None

# Questions of a seed lie side by side: question i of seed s is drawn from s + i.
MOST_ROWS = 1 << 20
# Far beyond the longest right answer.
MOST_CHARACTERS = 8192

# Sums and products; a power could take forever.
_ARITHMETIC = r'(?:(?!\*\*)[0-9+\-*/()\s])*'
# Letters and functions by themselves: no attribute, string or other name; nor
# a power of a power or an exponent of four digits, which could take forever.
_POWER = r'(?:\*\*|\^)\s*'
_FORMULA = (
  rf'(?!(?s:.*){_POWER}(?:-?\w+\s*{_POWER}|\([^)]*{_POWER}|\(?\s*-?\d{{4}}))'
  r'(?:[0-9+\-*/()^\s]|\.(?!\s*[A-Za-z_])|\b[A-Za-z]\b'
  r'|\b(?:sin|cos|tan|exp|log|ln|sqrt|pi|asin|acos|atan)\b)*'
)
# A list of numbers and of texts in quotes, or words without any bracket.
_LIST = r'(?:[\[\],\s]|-?\d+|\'[^\'\\]*\'|"[^"\\]*")*|[A-Za-z0-9_\s]*'
# Tasks whose scorer evaluates the answer (reasoning-gym 0.1.25, every use of
# eval and of sympy's parser in a score_answer), and what it may then see.
EVALUATED = {
  'binary_matrix': _LIST,
  'countdown': _ARITHMETIC,
  'intermediate_integration': _FORMULA,
  'n_queens': _LIST,
  'polynomial_multiplication': _FORMULA,
  'puzzle24': _ARITHMETIC,
  'simple_integration': _FORMULA,
  'spiral_matrix': _LIST,
  'string_insertion': _LIST,
}


def written(
  task: str, split: str, rows: int, seed: int, cache: pathlib.Path
) -> pathlib.Path:
  """A JSONL file of questions, written on first use.

  Args:
    task: a name of reasoning_gym.factory.DATASETS.
    split: train or test; they have no question in common but by chance.
    rows: number of questions.
    seed: of the questions.
    cache: the file is put into its folder `reasoning_gym`.

  Raises:
    ConfigError: no such task, or one that cannot be made without settings.
  """
  known = reasoning_gym.factory.DATASETS
  require(
    task in known,
    f'data.path: Reasoning Gym has no task {task!r}' + nearest(task, known),
  )
  require(
    rows <= MOST_ROWS,
    f'data.rows={rows} of Reasoning Gym exceeds {MOST_ROWS} questions of a seed',
  )
  first = (2 * seed + (split == 'test')) * MOST_ROWS
  try:
    dataset = _dataset(task, first, rows)
  except (AssertionError, TypeError, ValueError) as error:
    raise ConfigError(
      f'data.path: task {task} of Reasoning Gym: {error}'
    ) from None
  version = hashlib.sha256(pathlib.Path(__file__).read_bytes())
  version.update(reasoning_gym.__version__.encode())
  name = f'{task}-{first}-{rows}-{version.hexdigest()[:12]}.jsonl'
  file = cache / 'reasoning_gym' / name
  if not cached.exists(file):
    cached.writable(file.parent, cache)
    whole = file.with_suffix(f'.{os.getpid()}')
    with whole.open('w', encoding='utf-8') as lines:
      for index in range(rows):
        try:
          row = _row(dataset[index], task, first, rows, index)
        except ValueError as error:  # A seed that the task cannot take.
          whole.unlink()
          raise ConfigError(
            f'data.path: task {task} of Reasoning Gym with seed={seed}: {error}'
          ) from None
        lines.write(json.dumps(row, ensure_ascii=False) + '\n')
    whole.rename(file)
  return file


def score(prompt: str, answer: str, response: str) -> float:
  """The task's own score of a response, mostly 0 to 1; a reward function.

  Args:
    prompt: not read.
    answer: of a row of `written`.
    response: what the policy wrote.

  Raises:
    AnswerError: the response has no answer.
    ValueError: the row is of another version of Reasoning Gym.
  """
  del prompt
  named = json.loads(answer)
  dataset = _dataset(named['task'], named['seed'], named['size'])
  entry = dataset[named['index']]
  if entry['answer'] != named['answer']:
    raise ValueError('the row was made by another version of reasoning-gym')
  found = final(response)
  if found is None:
    raise AnswerError('no answer in the response')
  harmless = EVALUATED.get(named['task'], '(?s:.*)')
  if len(found) > MOST_CHARACTERS or not re.fullmatch(harmless, found):
    return 0.0
  return float(dataset.score_answer(found, entry))


def _row(
  entry: dict, task: str, seed: int, size: int, index: int
) -> dict[str, str]:
  answer = entry['answer']
  named = {'task': task, 'seed': seed, 'size': size, 'index': index}
  row = {
    'prompt': entry['question'],
    'answer': json.dumps({**named, 'answer': answer}),
  }
  if answer is not None:
    worked = entry['metadata'].get('answer_cot')
    row['expert'] = worked or f'<answer>{answer}</answer>'
  return row


@functools.lru_cache(maxsize=8)
def _dataset(task: str, seed: int, size: int):
  return reasoning_gym.create_dataset(task, seed=seed, size=size)
