"""What the scripts of this folder share: --config, --set and one-line errors.

No jax here: spawned reward workers import the script that started them.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import re
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import NamedTuple

from gft_jax.config import (
  Config,
  ConfigError,
  fields_with_meaning,
  for_stage,
  from_dict,
  nearest,
  override,
)

# The reward of the form module:function that is part of the package.
IN_HOUSE = 'gft_jax.data.gym:score'

# Four processes on two cores took more than a second to fail one after the other.
LAST_WORDS_S = 5


def parser(description: str) -> argparse.ArgumentParser:
  return argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )


def add_config(
  arguments: argparse.ArgumentParser, *, required: bool = True
) -> None:
  """--config and --set, and in --help every field with its meaning."""
  arguments.add_argument(
    '--config', required=required, help='a file with get_config() -> Config'
  )
  add_set(arguments, 'overrides one setting; may be repeated')
  lines = ['settings for --set:']
  for name, kind, default, meaning in fields_with_meaning():
    lines.append(f'  {name} ({kind}, {default!r})\n      {meaning}')
  arguments.epilog = '\n'.join(lines)


def add_set(arguments: argparse.ArgumentParser, meaning: str) -> None:
  """--set, whose values are assignments of `config.override`."""
  arguments.add_argument(
    '--set',
    action='extend',
    nargs='+',
    default=[],
    metavar='a.b=c',
    help=meaning,
  )


def add_model(arguments: argparse.ArgumentParser) -> None:
  """--model, or --workdir and --stage; see `model_config`."""
  arguments.add_argument('--model', help='a Hugging Face folder or hub id')
  arguments.add_argument('--workdir', help='a run, instead of --model')
  arguments.add_argument('--stage', help='the stage of the run')
  add_best(arguments)


def add_best(arguments: argparse.ArgumentParser) -> None:
  """--best, for scripts with --workdir and --stage; see `check_stage`."""
  arguments.add_argument(
    '--best',
    action='store_true',
    help='the step with the best checkpoint.best of the run, not the last',
  )


def model_config(options: argparse.Namespace) -> Config:
  """The config of the run, or the default one with the model's folder.

  Raises:
    ConfigError: neither or both of --model and --workdir, no run, no stage.
  """
  if bool(options.workdir) == bool(options.model):
    raise ConfigError('give --model, or --workdir and --stage')
  if options.model:
    if options.stage or options.best:
      raise ConfigError(
        '--stage and --best belong to --workdir, not to --model'
      )
    return override(Config(), f'model.path={options.model}')
  return stage_config(options.workdir, options.stage, options.best)


def stage_config(workdir: str, name: str | None, best: bool) -> Config:
  """The config of a run, as one of its stages samples, grades and evaluates.

  The data are those of the run: its evaluations are of them for every stage.

  Raises:
    ConfigError: no run, or no such stage.
  """
  config = read_config(workdir)
  check_stage(config, name, best)
  (stage,) = (stage for stage in config.stages if stage.name == name)
  own = for_stage(config, stage)
  return dataclasses.replace(
    config,
    sampler=own.sampler,
    reward=own.reward,
    loss=own.loss,
    eval=own.eval,
  )


def check_writable(flag: str, path: str | pathlib.Path) -> None:
  """Raises ConfigError where neither `path` nor a folder for it can be made."""
  above = pathlib.Path(path).absolute()
  if above.exists() and not above.is_dir():
    raise ConfigError(f'{flag} {path} is a file, not a folder')
  while not above.exists():
    above = above.parent
  if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
    raise ConfigError(f'{flag} {path}: {above} takes no files')


def load_model(options: argparse.Namespace, config: Config):
  """The engine.Policy of the config and the parameters to use."""
  from gft_jax.policy import load_policy, restore_stage

  policy = load_policy(config)
  if options.model:
    return policy, policy.params
  params, _ = restore_stage(
    policy, options.workdir, options.stage, best=options.best
  )
  return policy, params


class Recipe(NamedTuple):
  """A config file.

  Attributes:
    config: what its get_config() gave, under the overrides.
    claims: its claims(evaluations) -> {sentence: holds}, or None.
  """

  config: Config
  claims: Callable[[dict[str, dict[str, float]]], dict[str, bool]] | None


def load_recipe(path: str, assignments: list[str]) -> Recipe:
  """Runs a config file and applies the overrides.

  Raises:
    ConfigError: no such file (names the nearest), no get_config in it, or an
      override that does not fit.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    known = pathlib.Path(__file__).parent.glob('configs/**/*.py')
    raise ConfigError(
      f'--config {path}: no such file' + nearest(path, map(str, known))
    )
  names = runpy.run_path(str(file))
  if 'get_config' not in names:
    raise ConfigError(f'--config {path}: it has no get_config()')
  config = overridden(names['get_config'](), assignments)
  return Recipe(config, names.get('claims'))


def overridden(config: Config, assignments: Iterable[str]) -> Config:
  """The config under the assignments, the last of a setting last."""
  return functools.reduce(override, assignments, config)


def read_config(workdir: str) -> Config:
  """The config of a run.

  Raises:
    ConfigError: not a workdir.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.is_file():
    raise ConfigError(f'--workdir {workdir}: no config.json; not a run')
  try:
    return from_dict(Config, json.loads(path.read_text()))
  except (ValueError, TypeError, AttributeError) as error:
    raise ConfigError(f'{path} is not the config of a run: {error}') from error


def check_rewards(
  config: Config, workdir: str | None, given: list[str]
) -> None:
  """The config of a run is data, and a reward of one's own is code.

  Args:
    config: that a script will grade by.
    workdir: whose config.json it comes from, if any.
    given: the user's own assignments.

  Raises:
    ConfigError: a reward 'module:function' that the user has not named.
  """
  if not workdir:
    return
  from gft_jax.rewards.grader import parts_of

  named = {IN_HOUSE, *re.findall(r'[\w.:]+', ' '.join(given))}
  for setting in ('reward.function', 'eval.reward'):
    group, _, field = setting.partition('.')
    function = getattr(getattr(config, group), field)
    for part in parts_of(function) if function else ():
      if ':' in part.name and part.name not in named:
        raise ConfigError(
          f'{workdir}/config.json has the reward {part.name}, which is code; if'
          f" you trust it, name it yourself: --set {setting}='{function}'"
        )


def check_stage(config: Config, name: str | None, best: bool = False) -> None:
  """Raises ConfigError where a run has no such stage, or none is named.

  Also where the best of its steps is asked for, and it kept none.
  """
  names = [stage.name for stage in config.stages]
  if not name:
    raise ConfigError(f'--workdir needs --stage, one of {", ".join(names)}')
  if name not in names:
    raise ConfigError(
      f'--stage {name!r} is not one of {", ".join(names)}'
      + nearest(name, names)
    )
  (stage,) = (stage for stage in config.stages if stage.name == name)
  if best and not for_stage(config, stage).checkpoint.best:
    raise ConfigError(
      f'--best: stage {name} kept no best step; train with checkpoint.best='
    )


def run(work: Callable[[], None]) -> int:
  """Calls `work`; expected failures become one line and an exit code.

  Compiled programs are kept for the next process. JAX reads the place when it
  is imported, in `work`; a place that the user has named stands.
  """
  programs = pathlib.Path('~/.cache/gft_jax/programs').expanduser()
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(programs))
  try:
    work()
  except ConfigError as error:
    print(f'error: {error}', file=sys.stderr)
    _leave_others(2)
    return 2
  except InterruptedError as error:
    print(f'stopped: {error}', file=sys.stderr)
    return 128 + signal.SIGTERM
  except (FloatingPointError, OSError) as error:
    print(f'stopped: {error}', file=sys.stderr)
    _leave_others(1)
    return 1
  except KeyboardInterrupt:
    print('stopped by hand', file=sys.stderr)
    return 128 + signal.SIGINT
  except Exception:
    if _several():
      traceback.print_exc()
      _leave_others(1)
    raise
  return 0


def _several() -> bool:
  """Whether this is one process of several."""
  jax = sys.modules.get('jax')
  return bool(jax) and jax.distributed.is_initialized()


def _leave_others(code: int) -> None:
  """Ends this process of several at once; alone, returns.

  An ordinary exit of JAX waits for the others, and they wait for this one.
  JAX aborts them when process 0 ends: it waits, so that they can say what they
  refuse, or whom they have lost.
  """
  if _several():
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.modules['jax'].process_index() == 0:
      time.sleep(LAST_WORDS_S)
    os._exit(code)
