"""JSON objects in files, read strictly: a mistake in one is one line."""

import json
import pathlib
from collections.abc import Mapping

from gft_jax.config import ConfigError, require


def read_json(path: pathlib.Path) -> dict[str, object]:
  """The object that a file holds.

  Raises:
    ConfigError: no such file, not UTF-8, not JSON, not an object, or a key
      that stands twice, of which Python would take the last in silence.
  """
  require(path.is_file(), f'{path.parent} has no {path.name}')
  try:
    values = json.loads(
      path.read_text(encoding='utf-8'), object_pairs_hook=_once
    )
  except (OSError, ValueError, RecursionError) as error:
    raise ConfigError(f'{path} is not JSON: {error}') from error
  require(isinstance(values, dict), f'{path} is JSON, but not an object')
  return values


def write_json(path: pathlib.Path, values: Mapping[str, object]) -> None:
  path.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
  values = dict(pairs)
  if len(values) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'the key {twice!r} stands twice')
  return values
