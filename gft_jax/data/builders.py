"""TFDS builders without TensorFlow, and the one way to a prepared split.

Records are kept as ArrayRecord and read back by index. A dataset lies in a
folder named after what it was made from: the SHA-256 of the source file, its
columns and the code that reads it, or of the code of the embedded task; what is
edited is prepared again. What comes from elsewhere (a hub, Reasoning Gym) first
becomes a file in the cache.
TFDS writes into `incomplete.*` and renames at the end, so a folder that exists
is whole.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from gft_jax import thoughts
from gft_jax.answers import reading
from gft_jax.config import (
  DataConfig,
  one_of,
  require,
  require_all,
  user_path,
)
from gft_jax.data import (
  arithmetic,
  cache,
  cells,
  columns,
  files,
  hub,
  turns,
)

# The name of the embedded task, and its expert after a slash.
EMBEDDED = 'arithmetic'
# Rows cut off a file for 'test' where no eval_path is given: a tenth, at most.
MOST_HELD_OUT = 256
# The Reasoning Gym's name, its task after a slash, and rows where none are set.
GYM = 'reasoning_gym'
GYM_ROWS = 1000
# Different reasons for bad rows that are told apart; some quote the row.
MOST_REASONS = 100


@dataclasses.dataclass(frozen=True)
class Source:
  """A prepared split.

  Attributes:
    name: for messages.
    rows: dicts of row (its number in the file, or in the split), prompt,
      answer, expert, teacher, and in conversations prompt_turns,
      expert_turns and tools; see `files.rows`.
    dropped: bad rows of the file: reason -> their numbers.
    file: where the rows come from, with all of their columns; None: no file.
    roles: role -> column of that file.
    unused: columns of that file that no role reads.
    left_out: teachers that cannot be used: reason -> numbers of their rows,
      each as often as it has such teachers.
  """

  name: str
  rows: Sequence[dict]
  dropped: dict[str, list[int]]
  file: pathlib.Path | None = None
  roles: dict[str, str] = dataclasses.field(default_factory=dict)
  unused: Sequence[str] = ()
  left_out: dict[str, list[int]] = dataclasses.field(default_factory=dict)


class LocalBuilder(tfds.core.GeneratorBasedBuilder):
  """A builder that downloads nothing."""

  VERSION = tfds.core.Version('1.0.0')
  # TFDS would look for lists of checksums through importlib_resources, which
  # it does not install.
  url_infos: ClassVar[dict] = {}


class Arithmetic(LocalBuilder):
  """The embedded task; the config is the style of the expert."""

  BUILDER_CONFIGS: ClassVar[list] = [
    tfds.core.BuilderConfig(name=expert) for expert in arithmetic.EXPERTS
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    return _info(self)

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in arithmetic.SIZES}

  def _generate_examples(self, split: str):
    expert = self.builder_config.name
    for i, row in enumerate(arithmetic.rows(split, expert=expert)):
      yield i, {'row': i, **row}


class GroupFile(LocalBuilder):
  """Rows of a file; bad ones are named in the metadata.

  The turns of conversations are kept as JSON in a column, which costs a file
  of texts nothing: its first rows tell which it is.
  """

  def __init__(
    self,
    *,
    path: pathlib.Path,
    columns: dict[str, str],
    asked_only: bool,
    **kwargs,
  ) -> None:
    self.path, self.columns, self.asked_only = path, columns, asked_only
    self.talks = files.talks(path, columns, asked_only)
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    metadata = tfds.core.MetadataDict(dropped={}, first_bad='', left_out={})
    turns = {'turns': tfds.features.Text()} if self.talks else {}
    return _info(self, metadata, **turns)

  def _split_generators(self, dl_manager):
    return {'rows': self._generate_examples()}

  def _generate_examples(self):
    metadata, good, taught = self.info.metadata, 0, 0
    for number, row in files.rows(self.path, self.columns, self.asked_only):
      if not self.talks and isinstance(row, dict) and files.TURNS & row.keys():
        row = files.BadRow('is a conversation, and the first rows are not')
      if isinstance(row, files.BadRow):
        reason = _counted(metadata['dropped'], str(row), number)
        if not metadata['first_bad']:
          metadata['first_bad'] = f'row {number}: {reason}'
      else:
        good += 1
        taught += bool(row['teacher'])
        for reason in row.pop('left_out', ()):
          _counted(metadata['left_out'], reason, number)
        if self.talks:
          turns = {name: row.pop(name) for name in files.TURNS & row.keys()}
          row['turns'] = json.dumps(turns) if turns else ''
        yield number, {'row': number, **row}
    require(
      good > 0,
      f'{self.path}: every row is bad; {metadata["first_bad"]}'
      + _without(self.columns, metadata['first_bad']),
    )
    # One row may lack teachers; a whole file that does was meant otherwise.
    require(
      taught > 0 or 'teacher' not in self.columns or self.asked_only,
      f'{self.path}: the teacher column {self.columns.get("teacher")!r} is'
      ' empty in every row; leave it out with data.columns=teacher=',
    )


def _without(columns: dict[str, str], reason: str) -> str:
  """How to read a file whose column has nothing in any row."""
  role = reason.partition(': ')[2].removesuffix(' is missing')
  if role not in ('answer', 'expert') or role not in columns:
    return ''
  return (
    f' (column {columns[role]!r}); data.columns={role}= leaves the column out'
  )


def _counted(reasons: dict[str, list[int]], reason: str, number: int) -> str:
  """Adds the number of a row to a reason, or to 'other reasons'."""
  if len(reasons) >= MOST_REASONS and reason not in reasons:
    reason = 'other reasons'
  reasons.setdefault(reason, []).append(number)
  return reason


def source(config: DataConfig, split: str, seed: int = 0) -> Source:
  """The records of a split, prepared on first use.

  The embedded task has the splits of `arithmetic.SIZES`. Everything else has
  `train` and `test`: the rows of `eval_path`, or else other questions of the
  same task of Reasoning Gym, or the last rows of the file (a tenth, at most
  256), which `train` then lacks.

  Args:
    config: path, eval_path, columns, cache, rows and max_dropped.
    split: its name.
    seed: of the questions of Reasoning Gym.

  Raises:
    ConfigError: no such split, or data that cannot be used.
  """
  task, _, expert = (config.path or EMBEDDED).partition('/')
  if task == EMBEDDED:
    return _embedded_source(config, expert or arithmetic.EXPERTS[0], split)
  # Also what this split does not need, before anything is prepared.
  found = _files(config, split, seed)
  one_of('split', split, ('train', 'test'))
  setting = 'eval_path' if split == 'test' and config.eval_path else 'path'
  whole = config.eval_path or config.path.startswith(f'{GYM}/')
  return _file_source(config, found[setting], 'all' if whole else split)


def check(config: DataConfig, split: str, seed: int = 0) -> None:
  """Raises ConfigError with everything that the files of a run lack."""
  if not is_embedded(config):
    _files(config, split, seed)
    return
  for name in ('eval_path', 'columns'):
    value = getattr(config, name)
    require(
      not value,
      f'data.{name}={value} belongs to a file, and data.path names the embedded'
      ' task; set data.path=FILE',
    )


def is_embedded(config: DataConfig) -> bool:
  """Whether the data are the embedded task's."""
  return (config.path or EMBEDDED).partition('/')[0] == EMBEDDED


def _files(config: DataConfig, split: str, seed: int) -> dict[str, '_File']:
  """The files by setting: data.path, and data.eval_path if it is set."""
  found: dict[str, _File] = {}

  def read(setting: str) -> None:
    found[setting] = _file_columns(config, setting, split, seed)

  settings = [x for x in ('path', 'eval_path') if getattr(config, x)]
  require_all(*(functools.partial(read, setting) for setting in settings))
  return found


class _File(NamedTuple):
  """A file of rows: `name` for messages, and how it is read."""

  name: str
  path: pathlib.Path
  roles: dict[str, str]
  unused: list[str]
  asked_only: bool


def _file_columns(
  config: DataConfig, setting: str, split: str, seed: int
) -> _File:
  """The file of data.path or data.eval_path, and its columns."""
  name, asked_only = getattr(config, setting), setting == 'eval_path'
  path = _local_file(config, setting, split, seed)
  first = columns.first_values(path)
  named = '' if name.startswith(f'{GYM}/') else config.columns
  roles = columns.choose(path, first, named, asked_only)
  return _File(name, path, roles, columns.unused(first, roles), asked_only)


def _local_file(
  config: DataConfig, setting: str, split: str, seed: int
) -> pathlib.Path:
  """Where the rows of data.path or data.eval_path lie on this machine."""
  path: str = getattr(config, setting)
  folder = cache.folder_of(config.cache)
  if path.startswith(f'{GYM}/'):
    from gft_jax.data import gym  # needs the package

    rows = config.rows or GYM_ROWS
    if split == 'test':
      rows = min(rows, MOST_HELD_OUT)
    task = path.removeprefix(f'{GYM}/')
    return gym.written(task, split, rows, seed, folder)
  if path.startswith(hub.PREFIX):
    return hub.fetched(path, folder)
  file = user_path(path, f'data.{setting}')
  files.check_exists(file, f'data.{setting}: data file')
  return file


def _embedded_source(config: DataConfig, expert: str, split: str) -> Source:
  one_of('data.path: expert', expert, arithmetic.EXPERTS)
  one_of('split', split, arithmetic.SIZES)
  builder = _prepared(
    Arithmetic,
    config.cache,
    _digest(_ARITHMETIC),
    config=expert,
  )
  rows = _read(builder.data_dir, split)
  return Source(f'{EMBEDDED}/{expert}, {split}', rows, dropped={})


def _file_source(config: DataConfig, file: _File, part: str) -> Source:
  """`part` is all, or train or test for the two sides of the cut."""
  builder = _prepared(
    GroupFile,
    config.cache,
    _digest(
      _content(file.path),
      *_READERS,
      repr((sorted(file.roles.items()), file.asked_only)),
    ),
    path=file.path,
    columns=file.roles,
    asked_only=file.asked_only,
  )
  metadata = builder.info.metadata
  good = builder.info.splits['rows'].num_examples
  bad = sum(map(len, metadata['dropped'].values()))
  require(
    bad <= config.max_dropped * (good + bad),
    f'{file.name}: {bad} of {good + bad} rows are bad, more than'
    f' data.max_dropped={config.max_dropped} allows; the first:'
    f' {metadata["first_bad"]}',
  )
  cut = good - min(good // 10, MOST_HELD_OUT)
  require(
    part == 'all' or cut < good,
    f'{file.name} has {good} rows, too few to hold a tenth out; set data.eval_path',
  )
  slices = {'all': 'rows', 'train': f'rows[:{cut}]', 'test': f'rows[{cut}:]'}
  rows = _read(builder.data_dir, slices[part])
  return Source(
    file.name,
    rows,
    metadata['dropped'],
    file.path,
    file.roles,
    file.unused,
    metadata['left_out'],
  )


@functools.lru_cache(maxsize=8)
def _read(folder: str, split: str) -> list[dict]:
  """Rows of a prepared split as text, kept for the other stages."""
  # pyrefly: ignore[bad-argument-type]  # Of TFDS it sees only a decorator.
  records: Any = tfds.builder_from_directory(folder).as_data_source(split)
  return [_as_text(r) for r in records.__getitems__(range(len(records)))]


def _as_text(record: dict) -> dict:
  turns = record.get('turns')
  return {
    'row': int(record['row']),
    'prompt': record['prompt'].decode(),
    'answer': record['answer'].decode(),
    'expert': record['expert'].decode(),
    'teacher': [text.decode() for text in record['teacher']],
    **(json.loads(turns) if turns else {}),
  }


def _info(
  builder: tfds.core.DatasetBuilder,
  metadata: tfds.core.MetadataDict | None = None,
  **further: tfds.features.FeatureConnector,
) -> tfds.core.DatasetInfo:
  text = tfds.features.Text()
  return tfds.core.DatasetInfo(
    builder=builder,
    features=tfds.features.FeaturesDict(
      {
        'row': tfds.features.Scalar(np.int64),
        'prompt': text,
        'answer': text,
        'expert': text,
        'teacher': tfds.features.Sequence(text),
        **further,
      }
    ),
    disable_shuffling=True,
    metadata=metadata,
  )


def _content(path: str | pathlib.Path) -> str:
  """The digest of a file's bytes."""
  with open(path, 'rb') as content:
    return hashlib.file_digest(content, 'sha256').hexdigest()


# The code that makes a prepared dataset: what another version wrote is not read.
_ARITHMETIC = _content(arithmetic.__file__)
_READERS = [
  _content(m.__file__) for m in (files, turns, cells, reading, thoughts)
]


def _digest(*parts: str) -> str:
  return hashlib.sha256(''.join(parts).encode()).hexdigest()[:24]


def _prepared(kind: type, place: str, key: str, **arguments):
  """The builder with its files: there, or written by one process at a time."""
  top = cache.folder_of(place)
  folder = top / key
  if cache.exists(folder):
    builder = kind(data_dir=folder, file_format='array_record', **arguments)
    if builder.is_prepared():
      return builder
  cache.writable(folder, top)
  # TFDS draws a bar and prints to stdout, which belongs to the caller.
  tfds.disable_progress_bar()
  with (folder / 'lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Of a process that was killed; the lock says that none is at work here.
    for leftover in folder.rglob('incomplete.*'):
      shutil.rmtree(leftover)
    builder = kind(data_dir=folder, file_format='array_record', **arguments)
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  return builder
