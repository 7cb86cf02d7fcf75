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
share of data.max_dropped at most. A row without teachers is not bad; a teacher
that cannot be read is left out. The last lines say which column was read as
what, and which were not used.
"""

import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import command

from gft_jax.config import (
  Config,
  ConfigError,
  nearest,
  overridden,
  override,
  require,
)

if TYPE_CHECKING:  # Spawned reward workers import this script, without jax.
  from gft_jax.evaluation.given_answers import Grades

# Rows that are named for one reason; --json has all.
NAMED = 5
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
      config = override(config, 'eval.reward=')
    graded = options.reward is not None
    if graded:
      from gft_jax.evaluation import given_answers
      from gft_jax.rewards.grader import evaluation_reward

      # A mistake stops here.
      given_answers.check_reward(evaluation_reward(config))
    if options.json:
      _check_folder('--json', options.json)
    if not options.config and not any('group.' in s for s in options.set):
      config = _for_file(config, options.split)
    statistics = describe(config, options.tokenizer, options.split)
    if graded:
      statistics['pass_rates'] = pass_rates(config, options.split)
    if options.json:
      pathlib.Path(options.json).write_text(json.dumps(statistics, indent=1))

  return command.run(work)


def _for_file(config: Config, split: str) -> Config:
  """The groups that a file allows, where nobody has said which."""
  from gft_jax.data import inspection

  rows = inspection.source_of(config, split).rows
  if any(row['answer'] for row in rows):
    return config
  print(
    'no row has a reference answer: read as for imitation alone, with'
    ' group.teachers=0 group.samples=0; where answers are graded, set'
    ' data.columns=answer=NAME'
  )
  return overridden(config, ('group.teachers=0', 'group.samples=0'))


def describe(config: Config, tokenizer_path: str, split: str) -> dict[str, Any]:
  """Prints lengths in tokens and what the limits drop; returns them whole.

  Raises:
    ConfigError: the data cannot be used.
  """
  from gft_jax import data
  from gft_jax.data import inspection

  tokenizer = _tokenizer(
    tokenizer_path or config.model.path or config.model.tokenizer
  )
  source = inspection.source_of(config, split)
  lengths = inspection.token_lengths(config, tokenizer, split)
  print(f'{"tokens":10}{"count":>9}{"mean":>9}{"p50":>7}{"p95":>7}{"max":>7}')
  for role, (count, mean, *others) in lengths.items():
    rest = ''.join(f'{value:7}' for value in others)
    print(f'{role:10}{count:9}{mean:9.1f}{rest}')
  try:
    used = data.load(
      config.data, config.group, tokenizer, split, config.seed
    ).statistics
  except ConfigError:
    # Named before the run is refused; this too is, where nothing is left.
    _print_columns(source.roles, source.unused)
    _print_dropped(inspection.dropped_rows(config, tokenizer, split))
    raise
  print(f'rows used: {used.rows}')
  _print_dropped(used.dropped)
  for reason, count in used.empty_slots.items():
    print(f'empty slots: {count} {reason}')
  for reason, numbers in source.left_out.items():
    print(f'left out: {len(numbers)} {reason}: {_named(numbers)}')
  _print_columns(source.roles, source.unused)
  for note, numbers in used.notes.items():
    print(f'note: {note}: {_named(numbers)}')
  return {
    'data': config.data.path,
    'split': split,
    'columns': source.roles,
    'unused_columns': list(source.unused),
    'left_out': source.left_out,
    'tokens': {role: found._asdict() for role, found in lengths.items()},
    'rows': used.rows,
    'dropped': used.dropped,
    'empty_slots': used.empty_slots,
    'notes': used.notes,
  }


def pass_rates(config: Config, split: str) -> dict[str, Any]:
  """Grades every given answer of the split, prints and returns the shares."""
  from gft_jax.evaluation import given_answers
  from gft_jax.rewards.grader import evaluation_reward

  found = given_answers.grade_given(config, split)
  reward, threshold = evaluation_reward(config).function, config.eval.threshold
  passed = reward if threshold == 1 else f'{reward} (at least {threshold:g})'
  for role in ('expert', 'teacher'):
    if role in found:
      _print_grades(role, found[role], passed)
    else:
      print(f'{role}: no answers to grade')
  return {
    'reward': reward,
    'threshold': threshold,
    **{role: grades._asdict() for role, grades in found.items()},
  }


def verify(folder: pathlib.Path) -> None:
  """Compares the files of a folder with the manifest and prints one line each.

  Raises:
    ConfigError: no such folder, or one that holds a file of the manifest with
      other bytes or another number of rows, or none of them.
  """
  from gft_jax.data import manifests

  require(folder.is_dir(), f'--verify {folder}: no such folder')
  same, wrong = 0, []
  for finding in manifests.compare(folder, manifests.read(MANIFEST)):
    print(finding)
    if finding.state == 'differs':
      wrong.append(finding.name)
    same += finding.state == 'same'
  require(
    bool(same or wrong), f'--verify {folder}: no file of {MANIFEST} is there'
  )
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


def _print_columns(columns: Mapping[str, str], unused: Sequence[str]) -> None:
  """Says which column was read as what, and which were not read."""
  if columns:
    print('columns: ' + ', '.join(f'{k}={v}' for k, v in columns.items()))
  if unused:
    print('columns not used: ' + ', '.join(unused))
  if 'rejected' in unused or 'rejected' in columns:
    print(
      'preferences: chosen is read as the expert; train_reward_model.py --pairs'
      ' learns from chosen and rejected'
    )


def _print_dropped(dropped: dict[str, list[int]]) -> None:
  for reason, numbers in dropped.items():
    print(f'dropped: {len(numbers)} {reason}: {_named(numbers)}')


def _named(numbers: Sequence[int]) -> str:
  more = len(numbers) - NAMED
  first = ', '.join(map(str, numbers[:NAMED]))
  plural = 's' if len(numbers) > 1 else ''
  return f'row{plural} {first}' + (f' and {more} more' if more > 0 else '')


def _print_grades(role: str, grades: 'Grades', reward: str) -> None:
  print(
    f'{role}: {grades.pass_rate:.2%} of {grades.answers} answers pass {reward}'
  )
  for cause, count in grades.failures.items():
    print(f'{role}: {count} could not be graded: {cause}')
  if role == 'teacher':
    table = grades.rows_by_passes.items()
    print('rows by passes: ' + ', '.join(f'{n}: {rows}' for n, rows in table))
  if numbers := grades.rows_without_pass:
    print(f'{role}: {len(numbers)} rows without a pass: {_named(numbers)}')


if __name__ == '__main__':
  sys.exit(main())
