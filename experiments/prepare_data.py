"""Prepares and describes a dataset, or writes one from reasoning-gym.

  python experiments/prepare_data.py --path FILE --tokenizer FOLDER \\
    --set data.max_prompt=256 --set data.max_response=512
  python experiments/prepare_data.py --reasoning-gym gsm_symbolic \\
    --rows 2000 --out FILE.jsonl

The first form measures all rows in tokens, then reports what the limits of
--set drop; without --path it describes the embedded task. Exit code 2: the
data cannot be used as it is, and the line says why.
"""

import dataclasses
import json
import pathlib
import sys

import command

from gft_jax.config import Config, ConfigError, nearest, override, require

# Limits that nothing exceeds, to measure before anything is dropped.
UNLIMITED = 1 << 30


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  parser.add_argument('--path', default='', help='JSONL or parquet file')
  parser.add_argument('--tokenizer', default='', help='Hugging Face folder')
  parser.add_argument('--split', default='train')
  command.add_set(parser, 'settings of data and group')
  parser.add_argument('--reasoning-gym', metavar='TASK', help='what to write')
  parser.add_argument('--rows', type=int, default=1000, help='rows to write')
  parser.add_argument('--seed', type=int, default=0, help='of the rows written')
  parser.add_argument('--out', metavar='FILE.jsonl', help='where to write')
  options = parser.parse_args(arguments)

  def work():
    if options.reasoning_gym:
      require(bool(options.out), '--reasoning-gym needs --out FILE.jsonl')
      write_reasoning_gym(
        options.reasoning_gym, options.rows, options.seed, options.out
      )
      return
    config = command.overridden(Config(), options.set)
    if options.path:
      config = override(config, f'data.path={options.path}')
    describe(config, options.tokenizer, options.split)

  return command.run(work)


def describe(config: Config, tokenizer_path: str, split: str) -> None:
  """Prints lengths in tokens and what the limits drop.

  Raises:
    ConfigError: the data cannot be used.
  """
  from gft_jax import data

  tokenizer = _tokenizer(tokenizer_path)
  unlimited = dataclasses.replace(
    config.data, max_prompt=UNLIMITED, max_response=UNLIMITED
  )
  measured = data.load(unlimited, config.group, tokenizer, split).statistics
  print(f'{"tokens":10}{"count":>9}{"mean":>9}{"p50":>7}{"p95":>7}{"max":>7}')
  for role, lengths in measured.tokens.items():
    if lengths.size:
      print(
        f'{role:10}{lengths.size:9}{lengths.mean():9.1f}'
        f'{_percentile(lengths, 50):7}{_percentile(lengths, 95):7}'
        f'{lengths.max():7}'
      )
  used = data.load(config.data, config.group, tokenizer, split).statistics
  print(f'rows used: {used.rows}')
  for kind, counts in (
    ('dropped', used.dropped),
    ('empty slots', used.empty_slots),
  ):
    for reason, count in counts.items():
      print(f'{kind}: {count} {reason}')


def write_reasoning_gym(task: str, rows: int, seed: int, out: str) -> None:
  """Writes prompt, answer and expert; the last is the worked solution where
  the task has one, else a sentence with the answer.

  Raises:
    ConfigError: the package is absent, or has no such task.
  """
  try:
    import reasoning_gym
  except ModuleNotFoundError:
    raise ConfigError(
      'reasoning-gym is not installed: pip install reasoning-gym'
    ) from None
  known = reasoning_gym.factory.DATASETS
  require(
    task in known,
    f'--reasoning-gym: no task {task!r}' + nearest(task, known),
  )
  require(rows > 0, f'--rows={rows} must be positive')
  with pathlib.Path(out).open('w', encoding='utf-8') as file:
    for item in reasoning_gym.create_dataset(task, size=rows, seed=seed):
      answer, metadata = item['answer'], item['metadata']
      if 'answer_cot' in metadata:
        expert = metadata['answer_cot']
      else:
        expert = f'The answer is {answer}.'
      row = {'prompt': item['question'], 'answer': answer, 'expert': expert}
      file.write(json.dumps(row, ensure_ascii=False) + '\n')
  print(f'{rows} rows of {task} in {out}')


def _tokenizer(path: str):
  if not path:
    from gft_jax.data import arithmetic

    return arithmetic.tokenizer()
  require(pathlib.Path(path).is_dir(), f'--tokenizer {path}: no such folder')
  import transformers

  try:
    return transformers.AutoTokenizer.from_pretrained(path)
  except (OSError, ValueError) as error:
    raise ConfigError(f'--tokenizer {path}: {error}'.splitlines()[0]) from error


def _percentile(lengths, percent: int) -> int:
  import numpy as np

  return int(np.percentile(lengths, percent, method='nearest'))


if __name__ == '__main__':
  sys.exit(main())
