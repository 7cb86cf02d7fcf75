"""A workdir: one owner, one config, one dataset."""

import collections
import contextlib
import dataclasses
import fcntl
import json
import pathlib
from collections.abc import Generator, Iterable
from typing import TypeVar

import jax

from gft_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  ModelConfig,
  RewardConfig,
  Stage,
  check_local,
  differences,
  for_stage,
  from_dict,
  nearest,
  require,
  to_dict,
  user_path,
)
from gft_jax.parallel import processes
from gft_jax.run.files import write_whole

Group = TypeVar('Group', ModelConfig, DataConfig, RewardConfig)


def read_config(workdir: str | pathlib.Path) -> Config:
  """The settings of a run.

  Raises:
    ConfigError: there is no config.json, or it does not hold settings.
  """
  path = pathlib.Path(workdir) / 'config.json'
  require(path.is_file(), f'{workdir}: no config.json; not a run')
  try:
    return from_dict(Config, json.loads(path.read_text()))
  except (ValueError, TypeError, AttributeError) as error:
    raise ConfigError(
      f'{path} is not the config of a run ({error}); restore it, or use another'
      ' --workdir'
    ) from error


def found_again(config: Config, workdir: str | pathlib.Path) -> Config:
  """The settings of a run whose paths were relative to another folder.

  A relative path that is not here is looked for in the folders above the run,
  the nearest first: where the run was begun, as a rule.
  """
  above = pathlib.Path(workdir).absolute().parents

  def find(path: str) -> str:
    if not path or _exists(path):
      return path
    places = (str(folder / path) for folder in above)
    return next(filter(_exists, places), path)

  def in_fields(group: Group, *names: str) -> Group:
    found = {name: find(getattr(group, name)) for name in names}
    return dataclasses.replace(group, **found)

  return dataclasses.replace(
    config,
    model=in_fields(config.model, 'path', 'tokenizer'),
    data=in_fields(config.data, 'path', 'eval_path'),
    reward=in_fields(config.reward, 'model'),
  )


def _exists(path: str) -> bool:
  """Whether a file, a folder, or a run before the colon is there."""
  names = path, path.rpartition(':')[0] or path
  return any(user_path(name).exists() for name in names)


def split_stage(path: str) -> tuple[str, str] | None:
  """'runs/first:gft' -> ('runs/first', 'gft'); None for what is no run.

  Raises:
    ConfigError: a run without a stage.
  """
  folder, _, stage = path.rpartition(':')
  if _is_run(folder):
    return str(user_path(folder)), stage
  if _is_run(path):
    names = ', '.join(x.name for x in read_config(path).stages)
    raise ConfigError(
      f'{path} is a run, not a model; name one of its stages, as in'
      f' model.path={path}:STAGE; stages: {names}'
    )
  return None


def _is_run(folder: str) -> bool:
  """Whether a run has begun there; a model's config.json has no stages."""
  path = user_path(folder) / 'config.json'
  return bool(folder) and path.is_file() and b'"stages"' in path.read_bytes()


def check_stage(config: Config, name: str | None, best: bool = False) -> Stage:
  """The stage of that name.

  Raises:
    ConfigError: none is named, the run has no such stage, or `best` asks for
      the best of its steps, and it kept none.
  """
  stages = {stage.name: stage for stage in config.stages}
  if not name:
    raise ConfigError(f'--workdir needs --stage, one of {", ".join(stages)}')
  require(
    name in stages,
    f'--stage {name!r} is not one of {", ".join(stages)}'
    + nearest(name, stages),
  )
  require(
    not best or bool(for_stage(config, stages[name]).checkpoint.best),
    f'--best: stage {name} kept no best step; train with checkpoint.best=',
  )
  return stages[name]


def stage_config(
  workdir: str | pathlib.Path, name: str | None, best: bool = False
) -> Config:
  """The settings of a run, as one of its stages samples, grades, evaluates.

  The data are those of the run: its evaluations are of them for every stage.

  Raises:
    ConfigError: no run, no such stage, or no best step; see `check_stage`.
  """
  config = found_again(read_config(workdir), workdir)
  own = for_stage(config, check_stage(config, name, best))
  return dataclasses.replace(
    config,
    sampler=own.sampler,
    reward=own.reward,
    loss=own.loss,
    eval=own.eval,
  )


# Orbax looks for the files of a checkpoint by a pattern that holds its path.
PATTERN = '[]*?\\'


def local_folder(workdir: str | pathlib.Path) -> pathlib.Path:
  """The folder of a run; ~ is the home directory.

  Raises:
    ConfigError: a bucket, or a path under which checkpoints could not be read
      again.
  """
  require(str(workdir) != '', "--workdir '' names no folder")
  check_local(workdir, 'folder')
  folder = user_path(workdir, '--workdir')
  require(
    not folder.exists() or folder.is_dir(),
    f'--workdir {folder} is a file, not a folder',
  )
  # TensorStore refuses a path with .. in it.
  if '..' in folder.parts or str(folder).startswith('//'):
    folder = folder.resolve()
  found = [sign for sign in PATTERN if sign in str(folder.absolute())]
  require(
    not found,
    f'{folder.absolute()} has {" ".join(found)} in its path, and its checkpoints'
    ' could not be read again; use another --workdir',
  )
  return folder


def check_workdir(workdir: pathlib.Path, config: Config) -> None:
  """Refuses a workdir that was begun under another config, log.* aside.

  More stages at the end, and more steps of the last stage, change nothing that
  was done.
  """
  if (workdir / 'config.json').exists():
    begun = _extended(read_config(workdir), config)
    changed = differences(dataclasses.replace(begun, log=config.log), config)
    if changed:
      raise ConfigError(
        f'{workdir} was begun under another config; changed:'
        f' {"; ".join(changed)}; use a new --workdir'
      )


def _extended(begun: Config, config: Config) -> Config:
  """What was begun, with what `config` adds to its end."""
  count = len(begun.stages)
  if [x.name for x in begun.stages] != [x.name for x in config.stages[:count]]:
    return begun
  *before, last = begun.stages
  wanted = config.stages[count - 1]
  # A schedule that ends with the stage would have had other rates.
  if for_stage(begun, last).optimizer.schedule == 'constant':
    last = dataclasses.replace(
      last,
      steps=max(last.steps, wanted.steps),
      tokens=int(_larger(last.tokens, wanted.tokens)),
      seconds=_larger(last.seconds, wanted.seconds),
    )
  stages = (*before, last, *config.stages[count:])
  return dataclasses.replace(begun, stages=stages)


def _larger(limit: float, wanted: float) -> float:
  """The limit that allows more; 0 is none."""
  return max(limit, wanted) if limit and wanted else 0


@contextlib.contextmanager
def claim(workdir: pathlib.Path, config: Config) -> Generator[None, None, None]:
  """Holds a workdir for this run; config.json is written whole.

  The lock is process 0's and ends with it, however it ends.

  Raises:
    ConfigError: another run holds it.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / 'lock').open('a') as lock:
    held = False
    if jax.process_index() == 0:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        held = True
    if processes.any_process(held)[0]:
      raise ConfigError(
        f'{workdir} is in use by another run; wait for it, or use a new'
        ' --workdir'
      )
    check_workdir(workdir, config)  # Another run may have begun it meanwhile.
    processes.barrier()
    if jax.process_index() == 0:
      write_whole(
        workdir / 'config.json', json.dumps(to_dict(config), indent=1)
      )
    yield


def check_data(
  workdir: pathlib.Path, fingerprints: Iterable[tuple[str, str]]
) -> None:
  """Refuses a workdir that was begun on other data; data.json keeps on which.

  Args:
    workdir: of the run.
    fingerprints: (name, fingerprint) of every dataset that the run reads, and
      of the stage of another run that it starts from.

  Raises:
    ConfigError: a token of a row that is used has changed, or a parameter; the
      line names the file.
  """
  fingerprints = list(fingerprints)
  check_unchanged(workdir, fingerprints)
  found = {name: sorted(prints) for name, prints in _by_name(fingerprints)}
  path = workdir / 'data.json'
  if jax.process_index() == 0 and found != _begun_on(workdir):
    write_whole(path, json.dumps(found, indent=1))


def check_unchanged(
  workdir: pathlib.Path, fingerprints: Iterable[tuple[str, str]]
) -> None:
  """`check_data` for a reader of the run, which writes nothing."""
  begun = _begun_on(workdir)
  # A run that was extended reads more; what it has read must be the same.
  changed = [
    name
    for name, prints in _by_name(fingerprints)
    if set(begun.get(name, ())) - prints
  ]
  require(
    not changed,
    f'{workdir} was begun on other data; changed: {"; ".join(changed)};'
    ' restore the file, or use a new --workdir',
  )


def _begun_on(workdir: pathlib.Path) -> dict[str, list[str]]:
  """What data.json keeps; nothing where the run has not begun."""
  path = workdir / 'data.json'
  return json.loads(path.read_text()) if path.exists() else {}


def _by_name(
  fingerprints: Iterable[tuple[str, str]],
) -> Iterable[tuple[str, set[str]]]:
  prints = collections.defaultdict(set)
  for name, fingerprint in fingerprints:
    prints[name].add(fingerprint)
  return prints.items()


def coefficients_file(workdir: pathlib.Path, stage: str) -> pathlib.Path:
  """Where the report finds the weights of a stage's Figure 2."""
  return workdir / 'report' / 'coefficients' / f'{stage}.npz'


def stage_directory(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / 'checkpoints' / name
