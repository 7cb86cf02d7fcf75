"""What the scripts of this folder share: --config, --set and one-line errors.

No jax here: spawned reward workers import the script that started them.
"""

import argparse
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable

from gft_jax import recipes
from gft_jax.config import (
  Config,
  ConfigError,
  fields_with_meaning,
  overridden,
  override,
)

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
    '--config',
    required=required,
    metavar='NAME_OR_FILE',
    help='a recipe, such as quickstart or embedded/gft, or a file with'
    ' get_config() -> Config',
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
  """--best, for scripts with --workdir and --stage; see workdir.check_stage."""
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
  from gft_jax.run.workdir import stage_config

  return stage_config(options.workdir, options.stage, options.best)


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
  """The policy.Policy of the config and the parameters to use."""
  from gft_jax.policy import load_policy, load_stage

  if options.model:
    policy = load_policy(config)
    return policy, policy.params
  _, policy, params, _ = load_stage(
    options.workdir, options.stage, best=options.best, config=config
  )
  return policy, params


def load_recipe(name_or_file: str, assignments: list[str]) -> recipes.Recipe:
  """The recipe of --config, under the overrides.

  Raises:
    ConfigError: no such recipe or file (names the nearest), no get_config in
      it, or an override that does not fit.
  """
  config, claims = recipes.load(name_or_file)
  return recipes.Recipe(overridden(config, assignments), claims)


def run(work: Callable[[], None]) -> int:
  """Calls `work`; expected failures become one line and an exit code."""
  _keep_programs()
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


def _keep_programs() -> None:
  """Keeps compiled programs for the next process, where there is a place.

  JAX reads the place when it is imported; one that the user has named stands.
  Programs on a read-only volume are read, and none is added.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  try:
    place = pathlib.Path('~/.cache/gft_jax/programs').expanduser()
    above = place
    while not above.exists():
      above = above.parent
    writable = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
  except (OSError, RuntimeError):  # no home directory, or a closed one
    return
  if writable or above == place:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(place)
  if not writable:
    seconds = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
    os.environ.setdefault(seconds, '1e9')


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
