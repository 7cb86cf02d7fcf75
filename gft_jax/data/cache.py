"""The folder data.cache: what lies there is read; what is missing is written.

Reading needs no right to write, so that a dataset that was prepared serves from
a read-only volume.
"""

import os
import pathlib

from gft_jax.config import require, user_path


def exists(path: pathlib.Path) -> bool:
  """Whether it is there and may be seen."""
  try:
    return path.exists()
  except PermissionError:
    return False


def writable(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Makes a folder in the cache `folder`, and gives it.

  Raises:
    ConfigError: nothing can be written there.
  """
  why = ''
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    why = error.strerror or str(error)
  if not why and not os.access(path, os.W_OK | os.X_OK):
    why = 'read-only'
  require(
    not why,
    f'data.cache={folder} cannot be written ({why}), and this dataset is not'
    ' prepared there; set data.cache=DIR to a folder that can',
  )
  return path


def folder_of(cache: str) -> pathlib.Path:
  """The folder that data.cache names.

  Raises:
    ConfigError: it begins with ~, and there is no home directory.
  """
  return user_path(cache, 'data.cache')
