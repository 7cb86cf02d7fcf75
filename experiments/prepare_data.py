"""Prepares and describes a dataset, or writes one from reasoning-gym.

  python experiments/prepare_data.py --path FILE --tokenizer FOLDER \\
    --set data.max_prompt=256 data.max_response=512 --reward math
  python experiments/prepare_data.py --config CONFIG.py --reward
  python experiments/prepare_data.py --reasoning-gym gsm_symbolic \\
    --rows 2000 --out FILE.jsonl
  python experiments/prepare_data.py --verify FOLDER

The first two measure all rows in tokens, then name the rows that are bad or
that the limits drop; without --path and --config they describe the embedded
task. --reward grades every given answer, with all cores: how often experts and
teachers are right by the reward that a run would use. The last compares a
folder with the manifest of third_party/. Exit code 2: the data cannot be used
as they are, and the line says why.

A row is bad where a role cannot be read as text: missing, null, empty, not
UTF-8, of another type. Bad rows, and then rows that the limits drop, may be a
share of data.max_dropped at most. A row without teachers is not bad.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import command

from gft_jax.config import (
  Config,
  ConfigError,
  RewardConfig,
  nearest,
  overridden,
  override,
  require,
)

# Limits that nothing exceeds, to measure before anything is dropped.
UNLIMITED = 1 << 30
# Rows that are named for one reason; --json has all.
NAMED = 5
# Answers that are graded between two steps of the progress bar.
CHUNK = 1000
MANIFEST = pathlib.Path(__file__).parents[1] / 'third_party/datasets.json'


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  command.add_config(parser, required=False)
  parser.add_argument('--path', default='', help='as data.path')
  parser.add_argument(
    '--tokenizer',
    default='',
    help="Hugging Face folder; by default the config's, or the embedded one",
  )
  parser.add_argument('--split', default='train')
  parser.add_argument(
    '--reward',
    nargs='?',
    const='',
    metavar='NAME',
    help='grade the given answers; without NAME by reward.function',
  )
  parser.add_argument('--json', metavar='FILE', help='the statistics, whole')
  parser.add_argument('--reasoning-gym', metavar='TASK', help='what to write')
  parser.add_argument('--rows', type=int, default=1000, help='rows to write')
  parser.add_argument('--seed', type=int, default=0, help='of the rows written')
  parser.add_argument('--out', metavar='FILE.jsonl', help='where to write')
  parser.add_argument('--verify', metavar='FOLDER', help='of data files')
  options = parser.parse_args(arguments)

  def work():
    if options.verify:
      verify(pathlib.Path(options.verify))
      return
    if options.reasoning_gym:
      require(bool(options.out), '--reasoning-gym needs --out FILE.jsonl')
      write_reasoning_gym(
        options.reasoning_gym, options.rows, options.seed, options.out
      )
      return
    config = Config()
    if options.config:
      config = command.load_recipe(options.config, []).config
    config = override(config, f'reward.workers={os.cpu_count()}')
    config = overridden(config, options.set)
    if options.path:
      config = override(config, f'data.path={options.path}')
      if not config.data.eval_path:  # All rows: none are held out.
        config = override(config, f'data.eval_path={options.path}')
    if options.reward:
      config = override(config, f'reward.function={options.reward}')
    graded = options.reward is not None
    if graded:
      from gft_jax.rewards.grader import Grader

      with Grader(config.reward) as grader:  # a mistake stops here
        require(
          not grader.asks_model,
          f'reward.function={config.reward.function!r} asks a reward model;'
          ' given answers are graded by functions of text',
        )
    if options.json:
      _check_folder('--json', options.json)
    statistics = describe(config, options.tokenizer, options.split)
    if graded:
      statistics['pass_rates'] = pass_rates(config, options.split)
    if options.json:
      pathlib.Path(options.json).write_text(json.dumps(statistics, indent=1))

  return command.run(work)


def describe(config: Config, tokenizer_path: str, split: str) -> dict[str, Any]:
  """Prints lengths in tokens and what the limits drop; returns them whole.

  Raises:
    ConfigError: the data cannot be used.
  """
  from gft_jax import data
  from gft_jax.data import builders

  tokenizer = _tokenizer(
    tokenizer_path or config.model.path or config.model.tokenizer
  )

  def load(group=config.group, **limits):
    settings = dataclasses.replace(config.data, **limits)
    return data.load(settings, group, tokenizer, split, config.seed).statistics

  anything = dataclasses.replace(config.data, max_dropped=1.0)
  rows = builders.source(anything, split, config.seed).rows
  most = max(len(row['teacher']) for row in rows)
  all_teachers = dataclasses.replace(config.group, teachers=most)
  measured = load(
    all_teachers,
    max_prompt=UNLIMITED,
    max_response=UNLIMITED,
    max_dropped=1.0,
  )
  lengths = {
    role: _describe_lengths(tokens)
    for role, tokens in measured.tokens.items()
    if tokens.size
  }
  print(f'{"tokens":10}{"count":>9}{"mean":>9}{"p50":>7}{"p95":>7}{"max":>7}')
  for role, found in lengths.items():
    count, mean, *others = found.values()
    rest = ''.join(f'{value:7}' for value in others)
    print(f'{role:10}{count:9}{mean:9.1f}{rest}')
  try:
    used = load()
  except ConfigError:
    # Named before the run is refused; this too is, where nothing is left.
    _print_dropped(load(max_dropped=1.0).dropped)
    raise
  print(f'rows used: {used.rows}')
  _print_dropped(used.dropped)
  for reason, count in used.empty_slots.items():
    print(f'empty slots: {count} {reason}')
  return {
    'data': config.data.path,
    'split': split,
    'tokens': lengths,
    'rows': used.rows,
    'dropped': used.dropped,
    'empty_slots': used.empty_slots,
  }


def pass_rates(config: Config, split: str) -> dict[str, Any]:
  """Grades every given answer of the split, prints and returns the shares.

  An answer passes where its reward is at least 1, as in evaluation.
  """
  from gft_jax.data import builders
  from gft_jax.rewards.grader import Grader

  rows = builders.source(config.data, split, config.seed).rows
  rows = rows[: config.data.rows or len(rows)]
  given = {
    'expert': [[row['expert']] if row['expert'] else [] for row in rows],
    'teacher': [row['teacher'] for row in rows],
  }
  found: dict[str, Any] = {'reward': config.reward.function}
  with Grader(config.reward) as grader:
    for role, answers in given.items():
      if any(answers):
        found[role] = _grade(grader, role, rows, answers)
  _print_pass_rates(found, config.reward)
  return found


def verify(folder: pathlib.Path) -> None:
  """Compares the files of a folder with the manifest and prints one line each.

  Raises:
    ConfigError: no such folder, or one that holds a file of the manifest with
      other bytes or another number of rows, or none of them.
  """
  require(folder.is_dir(), f'--verify {folder}: no such folder')
  manifest = json.loads(MANIFEST.read_text())
  known, wrong = set(), []
  for name, entry in manifest.items():
    paths = sorted(folder.glob(name))
    known.update(paths)
    if not paths:
      print(f'absent   {name}')
    elif differences := list(_differences(paths, entry)):
      print(f'differs  {name}: {"; ".join(differences)}')
      wrong.append(name)
    else:
      unsure = '' if entry['sha256'] else ' (no checksum is known)'
      print(f'same     {name}{unsure}')
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path not in known:
      print(f'unknown  {path.relative_to(folder)}')
  require(bool(known), f'--verify {folder}: no file of {MANIFEST} is there')
  require(
    not wrong, f'--verify {folder}: not as in the manifest: {", ".join(wrong)}'
  )


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
  _check_folder('--out', out)
  try:
    items = reasoning_gym.create_dataset(task, size=rows, seed=seed)
  except (AssertionError, TypeError, ValueError) as error:
    raise ConfigError(f'--reasoning-gym {task}: {error}') from None
  with pathlib.Path(out).open('w', encoding='utf-8') as file:
    for item in items:
      answer, metadata = item['answer'], item['metadata']
      if 'answer_cot' in metadata:
        expert = metadata['answer_cot']
      else:
        expert = f'The answer is {answer}.'
      row = {'prompt': item['question'], 'answer': answer, 'expert': expert}
      file.write(json.dumps(row, ensure_ascii=False) + '\n')
  print(f'{rows} rows of {task} in {out}')


def _check_folder(flag: str, path: str) -> None:
  parent = pathlib.Path(path).parent
  require(parent.is_dir(), f'{flag} {path}: there is no folder {parent}')
  require(not pathlib.Path(path).is_dir(), f'{flag} {path} is a folder')
  command.check_writable(flag, parent)


def _tokenizer(path: str):
  """The one that a run would read, or that of the embedded task."""
  if not path:
    from gft_jax.data import arithmetic

    return arithmetic.tokenizer()
  from gft_jax.huggingface.tokenizer import load_tokenizer

  return load_tokenizer(path)


def _describe_lengths(lengths) -> dict[str, float]:
  import numpy as np

  p50, p95 = np.percentile(lengths, (50, 95), method='nearest')
  return {
    'count': lengths.size,
    'mean': float(lengths.mean()),
    'p50': int(p50),
    'p95': int(p95),
    'max': int(lengths.max()),
  }


def _print_dropped(dropped: dict[str, list[int]]) -> None:
  for reason, numbers in dropped.items():
    print(f'dropped: {len(numbers)} {reason}: {_named(numbers)}')


def _named(numbers: Sequence[int]) -> str:
  more = len(numbers) - NAMED
  first = ', '.join(map(str, numbers[:NAMED]))
  plural = 's' if len(numbers) > 1 else ''
  return f'row{plural} {first}' + (f' and {more} more' if more > 0 else '')


def _grade(
  grader: Any, role: str, rows: Sequence[dict], answers: list[list[str]]
) -> dict[str, Any]:
  """Grades answers[i] to rows[i]."""
  import numpy as np
  import tqdm

  cases = [
    (row['prompt'], row['answer'], text)
    for row, texts in zip(rows, answers)
    for text in texts
  ]
  passed, failures = [], collections.Counter()
  with tqdm.tqdm(total=len(cases), desc=role, disable=None) as bar:
    for start in range(0, len(cases), CHUNK):
      chunk = cases[start : start + CHUNK]
      scored = grader.score(*zip(*chunk))
      passed += (scored.values >= 1).tolist()
      failures.update(scored.failures)
      bar.update(len(chunk))
  sizes = [len(texts) for texts in answers]
  sums = np.add.reduceat([*passed, 0], np.cumsum([0, *sizes[:-1]]))
  counts = [int(n) for n, size in zip(sums, sizes) if size]
  histogram = np.bincount(counts, minlength=max(sizes) + 1)
  return {
    'answers': len(cases),
    'pass_rate': sum(passed) / len(cases),
    'failures': dict(failures),
    'rows_by_passes': dict(enumerate(histogram.tolist())),
    'rows_without_pass': [
      row['row'] for row, n, size in zip(rows, sums, sizes) if size and not n
    ],
  }


def _print_pass_rates(found: dict[str, Any], reward: RewardConfig) -> None:
  for role in ('expert', 'teacher'):
    if role not in found:
      print(f'{role}: no answers to grade')
      continue
    grades = found[role]
    print(
      f'{role}: {grades["pass_rate"]:.2%} of {grades["answers"]} answers pass'
      f' {reward.function}'
    )
    for cause, count in grades['failures'].items():
      print(f'{role}: {count} could not be graded: {cause}')
    if role == 'teacher':
      table = grades['rows_by_passes'].items()
      print('rows by passes: ' + ', '.join(f'{n}: {rows}' for n, rows in table))
    if numbers := grades['rows_without_pass']:
      print(f'{role}: {len(numbers)} rows without a pass: {_named(numbers)}')


def _differences(paths: list[pathlib.Path], entry: dict) -> Iterator[str]:
  """In what the files of one entry of the manifest differ from it."""
  from gft_jax.data import files

  if entry['sha256']:
    with paths[0].open('rb') as content:
      found = hashlib.file_digest(content, 'sha256').hexdigest()
    if found != entry['sha256']:
      yield f'sha256 {found}, not {entry["sha256"]}'
  if entry['rows']:
    try:
      rows = sum(1 for path in paths for _ in files.raw_rows(path))
    except ConfigError as error:
      yield str(error)
      return
    if rows != entry['rows']:
      yield f'{rows} rows, not {entry["rows"]}'


if __name__ == '__main__':
  sys.exit(main())
