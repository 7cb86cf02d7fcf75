"""One-line errors for settings and data that cannot work."""

import difflib
import math
import pathlib
import re
import typing
from collections.abc import Callable


class ConfigError(ValueError):
  """A setting that cannot work; the message is one line for the user."""


def require(condition: bool, message: str) -> None:
  if not condition:
    raise ConfigError(message)


def require_all(*checks: Callable[[], object]) -> None:
  """Makes every check; what fails becomes one ConfigError of one line."""
  faults = []
  for check in checks:
    try:
      check()
    except ConfigError as error:
      faults.append(str(error))
  require(not faults, '; '.join(dict.fromkeys(faults)))


def one_of(name: str, value: str, choices: typing.Iterable[str]) -> None:
  """Raises ConfigError with the nearest choice."""
  choices = tuple(choices)
  if value not in choices:
    raise ConfigError(
      f'{name}={value!r} is not one of {", ".join(choices)}'
      + nearest(value, choices)
    )


def positive(name: str, value: float) -> None:
  require(value > 0, f'{name}={value} must be positive')


def not_negative(name: str, value: float) -> None:
  require(
    0 <= value < math.inf, f'{name}={value} must be finite and not negative'
  )


def check_local(path: str | pathlib.Path, kind: str, name: str = '') -> None:
  """Refuses a bucket, gs://a, or gs:/a as pathlib has it.

  Args:
    path: as the user wrote it.
    kind: 'folder' or 'file', for the message.
    name: of the setting or flag, with the sign between both.
  """
  require(
    not re.match(r'[\w.+-]+:/', str(path)),
    f'{name}{path} is not a local {kind}; mount the bucket, and name the {kind}'
    ' there',
  )


def user_path(path: str | pathlib.Path, setting: str = '') -> pathlib.Path:
  """The path with the home directory in place of ~.

  Args:
    path: as the user wrote it.
    setting: that holds it, for the message.

  Raises:
    ConfigError: it begins with ~, and there is no home directory.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError:
    user = pathlib.Path(path).parts[0]
    require(
      user == '~',
      f'{setting}{"=" if setting else ""}{path}: there is no user {user[1:]}',
    )
    raise ConfigError(
      f'{setting}{"=" if setting else ""}{path}: there is no home directory'
      ' (HOME is not set); '
      + (f'set {setting}=DIR to' if setting else 'name')
      + ' a path without ~'
    ) from None


def nearest(word: str, choices: typing.Iterable[str]) -> str:
  matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.3)
  return f'; did you mean {matches[0]}?' if matches else ''
