"""The cache: read where it may be read, written where it may be written."""

import os
import pathlib

import pytest

from gft_jax.config import ConfigError
from gft_jax.data import cache


def test_a_folder_is_made(tmp_path):
  folder = tmp_path / 'a' / 'b'
  assert not cache.exists(folder)
  assert cache.writable(folder, tmp_path) == folder
  assert cache.exists(folder) and folder.is_dir()


@pytest.mark.parametrize(
  'fault', ['read-only', 'a file in its way', 'no right']
)
def test_what_cannot_be_written_names_the_setting(tmp_path, monkeypatch, fault):
  folder = tmp_path / 'a'
  if fault == 'a file in its way':
    folder.touch()
  if fault == 'read-only':  # Permissions do not bind root.
    monkeypatch.setattr(os, 'access', lambda *_: False)
  if fault == 'no right':

    def mkdir(*_, **__):
      raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(pathlib.Path, 'mkdir', mkdir)
  with pytest.raises(ConfigError) as caught:
    cache.writable(folder, tmp_path)
  line = str(caught.value)
  assert line.startswith(f'data.cache={tmp_path} cannot be written (')
  assert line.endswith('set data.cache=DIR to a folder that can')


def test_what_may_not_be_seen_is_not_there(monkeypatch):
  def exists(self):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(pathlib.Path, 'exists', exists)
  assert not cache.exists(pathlib.Path('/root/.cache'))
