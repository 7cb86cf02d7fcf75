"""A file is the old one or the new one at every moment."""

import os
import pathlib

import pytest

from gft_jax.run import files


def test_what_is_written_replaces_the_file_and_leaves_nothing_else(tmp_path):
  path = tmp_path / 'config.json'
  files.write_whole(path, 'a long old text')
  files.write_whole(path, 'new')
  assert path.read_text() == 'new'
  assert list(tmp_path.iterdir()) == [path]


def test_the_new_text_is_whole_on_disk_before_it_replaces_the_old(
  tmp_path, monkeypatch
):
  path, order = tmp_path / 'config.json', []
  path.write_text('old')
  sync, rename = os.fsync, pathlib.Path.rename

  def synced(descriptor):
    (new,) = {*tmp_path.iterdir()} - {path}
    order.append(('sync', path.read_text(), new.read_text()))
    sync(descriptor)

  def renamed(self, target):
    order.append(('rename', target.read_text(), self.read_text()))
    return rename(self, target)

  monkeypatch.setattr(files.os, 'fsync', synced)
  monkeypatch.setattr(pathlib.Path, 'rename', renamed)
  files.write_whole(path, 'new')
  assert order == [('sync', 'old', 'new'), ('rename', 'old', 'new')]


def test_an_error_leaves_the_old_file_and_the_next_write_succeeds(
  tmp_path, monkeypatch
):
  def full(descriptor):
    raise OSError('no space left on device')

  path = tmp_path / 'config.json'
  path.write_text('old')
  with monkeypatch.context() as patch:
    patch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match='no space left'):
      files.write_whole(path, 'a new text')
  assert path.read_text() == 'old'
  files.write_whole(path, 'new')
  assert path.read_text() == 'new'
  assert list(tmp_path.iterdir()) == [path]
