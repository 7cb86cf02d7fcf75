"""A workdir: one owner, one config, one dataset."""

import collections
import contextlib
import dataclasses
import fcntl
import json
import pathlib
import re
from collections.abc import Generator, Iterable

import jax

from gft_jax.config import (
  Config,
  ConfigError,
  Stage,
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
  config = read_config(workdir)
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
  require(
    not re.match(r'\w+:/', str(workdir)),
    f'{workdir} is not a local folder; mount the bucket and name the folder',
  )
  folder = user_path(workdir, '--workdir')
  found = [sign for sign in PATTERN if sign in str(folder.absolute())]
  require(
    not found,
    f'{folder.absolute()} has {" ".join(found)} in its path, and its checkpoints'
    ' could not be read again; use another --workdir',
  )
  return folder


def check_workdir(workdir: pathlib.Path, config: Config) -> None:
  """Refuses a workdir that was begun under another config, log.* aside."""
  if (workdir / 'config.json').exists():
    begun = read_config(workdir)
    changed = differences(dataclasses.replace(begun, log=config.log), config)
    if changed:
      raise ConfigError(
        f'{workdir} was begun under another config; changed:'
        f' {"; ".join(changed)}; use a new --workdir'
      )


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
    fingerprints: (name, fingerprint) of every dataset that the run reads.

  Raises:
    ConfigError: a token of a row that is used has changed; the line names the
      file.
  """
  prints = collections.defaultdict(set)
  for name, fingerprint in fingerprints:
    prints[name].add(fingerprint)
  found = {name: sorted(prints[name]) for name in prints}
  path = workdir / 'data.json'
  if path.exists():
    begun = json.loads(path.read_text())
    changed = [name for name in found if begun.get(name) != found[name]]
    require(
      not changed,
      f'{workdir} was begun on other data; changed: {"; ".join(changed)};'
      ' restore the file, or use a new --workdir',
    )
  elif jax.process_index() == 0:
    write_whole(path, json.dumps(found, indent=1))


def coefficients_file(workdir: pathlib.Path, stage: str) -> pathlib.Path:
  """Where the report finds the weights of a stage's Figure 2."""
  return workdir / 'report' / 'coefficients' / f'{stage}.npz'


def stage_directory(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / 'checkpoints' / name
