"""What the scripts of this folder share: --config, --set and one-line errors.

No jax here: spawned reward workers import the script that started them.
"""

import argparse
import contextlib
import os
import pathlib
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator

from gft_jax import recipes
from gft_jax.config import (
  Config,
  ConfigError,
  check_local,
  fields_with_meaning,
  overridden,
  override,
  user_path,
)
from gft_jax.run.signals import Preempted, say

# Four processes on two cores took more than a second to fail one after the other.
LAST_WORDS_S = 5


# Flags that name a file or folder of this machine; a shell leaves --out=~/a as
# it is.
PLACES = ('workdir', 'out', 'json', 'verify', 'pairs', 'regrade', 'compare')


class _StoreOnce(argparse.Action):
  """Stores one value; a flag that is given twice is refused, not replaced."""

  _given: argparse.Namespace | None = None

  def __call__(self, parser, namespace, values, option_string=None) -> None:
    if self._given is namespace:
      parser.error(f'{option_string} is given twice')
    self._given = namespace
    if self.dest in PLACES:
      several = isinstance(values, list)
      values = [*map(_expanded, values)] if several else _expanded(values)
    setattr(namespace, self.dest, values)


def _expanded(path: str) -> str:
  """The path with the home directory for ~, where there is one."""
  try:
    return str(user_path(path))
  except ConfigError:
    return path


def parser(description: str) -> argparse.ArgumentParser:
  """A parser whose flags stand once, where they do not add up."""
  made = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  for name in (None, 'store'):
    made.register('action', name, _StoreOnce)
  return made


def with_texts(arguments: list[str] | None, flag: str) -> list[str]:
  """The arguments, with every text of a flag bound to it.

  argparse takes a text that begins with a dash, such as the prompt -3+5:, for
  a flag. One that looks like a flag, --a, has to be written as FLAG=--a.
  """
  found, texts = [], False
  for argument in sys.argv[1:] if arguments is None else arguments:
    if argument == flag:
      texts = True
      continue
    texts = texts and not re.match('--[a-z]|-h$', argument)
    found.append(f'{flag}={argument}' if texts else argument)
  return found


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
  check_local(path, 'folder', f'{flag} ')
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
  """Calls `work`; expected failures become one line and an exit code.

  Ctrl-C ends it at once, where the work does not save first, as training does.
  """
  _keep_programs()
  try:
    with _ended_by_hand():
      work()
  except ConfigError as error:
    print(f'error: {error}', file=sys.stderr)
    _leave_others(2)
    return 2
  except Preempted as error:
    print(f'stopped: {error}', file=sys.stderr)
    return 128 + error.number
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


@contextlib.contextmanager
def _ended_by_hand() -> Generator[None, None, None]:
  """The first Ctrl-C ends the process, where nothing inside takes it.

  A KeyboardInterrupt would be raised inside any import or compilation, which
  may swallow it, or end the process with words of its own. All that the project
  writes survives a kill.
  """
  main_thread = threading.current_thread() is threading.main_thread()
  handler = signal.getsignal(signal.SIGINT)
  if not main_thread or handler is not signal.default_int_handler:
    yield
    return

  def end(*unused: object) -> None:
    say('stopped by hand')
    _leave_others(128 + signal.SIGINT)
    os._exit(128 + signal.SIGINT)

  signal.signal(signal.SIGINT, end)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, handler)


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
  # Ctrl-C may come while jax is imported.
  distributed = getattr(sys.modules.get('jax'), 'distributed', None)
  return distributed is not None and distributed.is_initialized()


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
