"""Orbax checkpoints that count only if every byte verifies.

A step is a folder `<step>/` with Orbax checkpoints of the parameters and of
the rest of the state, the run's position, and `manifest.json`, written last:
the SHA-256 of every other file. Orbax 0.12 loads flipped bits silently and
lists truncated steps, so a step without a manifest, or with one that does not
match, does not count.
"""

import hashlib
import json
import logging
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import flax.serialization
import jax
from orbax.checkpoint import v1 as ocp

MANIFEST = 'manifest.json'


class SaveError(OSError):
  """A checkpoint could not be written; the message is one line."""


class Restored(NamedTuple):
  """A verified checkpoint.

  Attributes:
    step: steps of the stage that are done.
    state: of the structure that `restore` was given.
    position: what `save` was given beside the state.
  """

  step: int
  state: Any
  position: dict[str, Any]


def save(
  directory: pathlib.Path,
  step: int,
  state: Any,
  position: dict[str, Any],
  *,
  keep: int,
) -> None:
  """Writes a checkpoint and deletes all but the newest `keep`.

  Args:
    directory: of this stage.
    step: steps done.
    state: a Flax train state, or another tree of arrays with `params`.
    position: JSON types: data iterator, byte offset of metrics.jsonl.
    keep: at least 1; only verified steps are counted and deleted.

  Raises:
    SaveError: the disk is full, or takes no files for another reason. What was
      written of this step is deleted, earlier ones stand.
  """
  directory = directory.absolute()  # Orbax takes no other path.
  target = directory / f'{step:08d}'
  # A leftover of an interrupted or damaged save of the same step.
  shutil.rmtree(target, ignore_errors=True)
  target.parent.mkdir(parents=True, exist_ok=True)
  rest = flax.serialization.to_state_dict(state)
  params = rest.pop('params')
  try:
    ocp.save(target / 'params', params)
    ocp.save(target / 'rest', rest)
    _write(target / 'position.json', json.dumps(position))
    _write(target / MANIFEST, json.dumps(_digests(target), indent=1))
  except Exception as error:  # TensorStore has no class of its own for it.
    shutil.rmtree(target, ignore_errors=True)
    reason = ' '.join(str(error).split())
    raise SaveError(
      f'the checkpoint {target} could not be written ({reason[:200]}); earlier'
      ' ones stand'
    ) from error
  done = sorted(p.parent for p in directory.glob(f'*/{MANIFEST}'))
  for old in done[:-keep]:
    shutil.rmtree(old)


def restore(directory: pathlib.Path, abstract: Any) -> Restored | None:
  """The newest checkpoint that verifies, or None.

  Args:
    directory: of one stage.
    abstract: the train state to fill, as arrays or `jax.ShapeDtypeStruct`s
      with shardings.
  """
  folder = newest(directory)
  if folder is None:
    return None
  target = flax.serialization.to_state_dict(abstract)
  params = _load(folder / 'params', target.pop('params'))
  values = _load(folder / 'rest', target) | {'params': params}
  return Restored(
    step=int(folder.name),
    state=flax.serialization.from_state_dict(abstract, values),
    position=json.loads((folder / 'position.json').read_text()),
  )


def restore_params(directory: pathlib.Path, abstract: Any) -> tuple[Any, int]:
  """Parameters and step of the newest checkpoint that verifies.

  Args:
    directory: of one stage.
    abstract: the parameters to fill; see `restore`.

  Raises:
    FileNotFoundError: there is none.
  """
  folder = newest(directory)
  if folder is None:
    raise FileNotFoundError(f'no checkpoint that verifies in {directory}')
  return _load(folder / 'params', abstract), int(folder.name)


def newest(directory: pathlib.Path) -> pathlib.Path | None:
  """The newest step that verifies.

  One that does not is passed over with a warning that names it and the file
  at fault.
  """
  folders = directory.absolute().glob('[0-9]*')
  for folder in sorted(folders, reverse=True):
    fault = _fault(folder)
    if not fault:
      return folder
    logging.warning('checkpoint %s is passed over: %s', folder, fault)
  return None


def _load(path: pathlib.Path, abstract: Any) -> Any:
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    abstract,
  )
  return ocp.load(path, target)


def _fault(folder: pathlib.Path) -> str:
  """Why the checkpoint does not count; empty if it does."""
  manifest = folder / MANIFEST
  if not manifest.exists():
    return f'no {MANIFEST}; the save did not finish'
  try:
    expected = json.loads(manifest.read_text())
  except ValueError:
    return f'{MANIFEST} is damaged'
  found = _digests(folder)
  for name in sorted(set(expected) | set(found)):
    if name not in found:
      return f'{name} is missing'
    if name not in expected:
      return f'{name} does not belong to it'
    if expected[name] != found[name]:
      return f'{name} is damaged'
  return ''


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of every file below the folder except the manifest."""
  digests = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path != folder / MANIFEST:
      with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
      digests[str(path.relative_to(folder))] = digest
  return digests


def _write(path: pathlib.Path, text: str) -> None:
  """Whole or not at all, also across a power cut."""
  temporary = path.with_suffix('.tmp')
  with temporary.open('w') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.rename(path)
