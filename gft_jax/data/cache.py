"""The folder data.cache: what lies there is read; what is missing is written.

Reading needs no right to write, so that a dataset that was prepared serves from
a read-only volume.
"""

import os
import pathlib

from gft_jax.config import check_local, require, user_path


def exists(path: pathlib.Path) -> bool:
  """Whether it is there and may be seen."""
  try:
    return path.exists()
  except PermissionError:
    return False


def check_writable(folder: pathlib.Path) -> None:
  """Raises ConfigError where nothing can be written in the cache `folder`."""
  above = folder
  while not exists(above) and above != above.parent:
    above = above.parent
  _refuse(not above.is_dir(), folder, f'{above} is not a folder')
  _refuse(not os.access(above, os.W_OK | os.X_OK), folder, 'read-only')


def writable(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Makes a folder in the cache `folder`, and gives it.

  Raises:
    ConfigError: nothing can be written there.
  """
  check_writable(folder)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    _refuse(True, folder, error.strerror or str(error))
  return path


def _refuse(fault: bool, folder: pathlib.Path, why: str) -> None:
  require(
    not fault,
    f'data.cache={folder} cannot be written ({why}), and this dataset is not'
    ' prepared there; set data.cache=DIR to a folder that can',
  )


def folder_of(cache: str) -> pathlib.Path:
  """The folder that data.cache names.

  Raises:
    ConfigError: it begins with ~, and there is no home directory.
  """
  check_local(cache, 'folder', 'data.cache=')
  return user_path(cache, 'data.cache')
