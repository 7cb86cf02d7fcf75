"""Orbax checkpoints that count only if every byte verifies.

A step is a folder `<step>/` with Orbax checkpoints of the parameters and of
the rest of the state, the run's position, and `manifest.json`, written last:
the SHA-256 of every other file (two of the position, while `amend` replaces
it), once every part of every array was found in what will be read. Orbax 0.12
loads flipped bits silently and lists truncated steps, so a step without a
manifest, or with one that does not match, does not count.
"""

import collections
import contextlib
import hashlib
import json
import logging
import math
import pathlib
import shutil
from collections.abc import Generator, Mapping, Sequence
from concurrent import futures
from typing import Any, Generic, NamedTuple, TypeVar

import flax.serialization
import jax
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from gft_jax.parallel import processes
from gft_jax.run.files import write_whole
from gft_jax.types import Json, Params, Tree

MANIFEST = 'manifest.json'
Shapes = dict[str, tuple[int, ...]]

# A Flax train state, or another tree of arrays with `params`.
State = TypeVar('State')


class SaveError(OSError):
  """A checkpoint could not be written; the message is one line."""


class RestoreError(OSError):
  """A checkpoint could not be read; the message is one line."""


class Restored(NamedTuple, Generic[State]):
  """A verified checkpoint.

  Attributes:
    step: steps of the stage that are done.
    state: of the structure that `restore` was given.
    position: what `save` was given beside the state, or `amend` later.
  """

  step: int
  state: State
  position: Json


class Saver:
  """Writes checkpoints while training goes on, one at a time.

  Each process writes its part of the arrays. Process 0 writes the rest, the
  manifest when all have written, and deletes. Leave `with` and the last save is
  done.
  """

  def __init__(self):
    self._thread = futures.ThreadPoolExecutor(max_workers=1)
    self._saving: futures.Future[None] | None = None

  def __enter__(self) -> 'Saver':
    return self

  def __exit__(self, kind, *unused_exception) -> None:
    # Without one of the processes a save would never end.
    broken = kind is not None and issubclass(
      kind, (jax.errors.JaxRuntimeError, processes.LostProcessError)
    )
    try:
      if not broken:
        self.wait()
    except SaveError:
      if kind is None:  # What goes wrong already is said first.
        raise
    finally:
      self._thread.shutdown(wait=not broken)

  def save(
    self,
    directory: pathlib.Path,
    step: int,
    state: State,
    position: Mapping[str, object],
    *,
    keep: int,
    keep_best: bool = False,
  ) -> None:
    """Begins a checkpoint; `state` may be donated when this returns.

    All but the newest `keep` are deleted, and with `keep_best` all but the best
    too.

    Args:
      directory: of this stage.
      step: steps done.
      state: a Flax train state, or another tree of arrays with `params`.
      position: JSON types: data iterator, byte offset of metrics.jsonl; its
        `score`, if any, makes a checkpoint the best.
      keep: at least 1; only complete steps are counted and deleted.
      keep_best: see above.

    Raises:
      SaveError: this one or the one before could not be written, for instance
        because the disk is full. What was written of it is deleted, earlier
        ones stand.
    """
    self.wait()
    target = directory.absolute() / f'{step:08d}'  # Orbax takes no other path.
    rest: Any = flax.serialization.to_state_dict(state)  # a tree, as orbax's
    params = rest.pop('params')
    with _saving(target):
      if jax.process_index() == 0:
        # Leftovers of an interrupted save of this step, and of damaged ones that
        # a resumed run has passed over.
        for other in target.parent.glob('[0-9]*'):
          if other.name >= target.name:
            shutil.rmtree(other)
        target.parent.mkdir(parents=True, exist_ok=True)
      processes.barrier()  # Nobody writes before that.
      parts = {'params': params, 'rest': rest}
      arrays = [
        ocp.save_async(str(target / name), part) for name, part in parts.items()
      ]
    shapes = {name: _shapes(part) for name, part in parts.items()}
    self._saving = self._thread.submit(
      _finish, target, arrays, shapes, position, keep, keep_best
    )

  def wait(self) -> None:
    """Returns when no save is going on; raises SaveError, see `save`."""
    saving, self._saving = self._saving, None
    if saving is not None:
      saving.result()


def save(
  directory: pathlib.Path,
  step: int,
  state: State,
  position: Mapping[str, object],
  *,
  keep: int,
) -> None:
  """Writes a checkpoint before it returns; see Saver.save."""
  with Saver() as saver:
    saver.save(directory, step, state, position, keep=keep)


def amend(
  directory: pathlib.Path, step: int, position: Mapping[str, object]
) -> None:
  """Replaces the position of a complete checkpoint.

  Killed at any moment it verifies, with the old position or the new one.

  Raises:
    SaveError: it could not be written; the checkpoint stands as it was.
  """
  if jax.process_index() != 0:
    return
  folder = directory / f'{step:08d}'
  manifest, text = folder / MANIFEST, json.dumps(position)
  digests = json.loads(manifest.read_text())
  new = hashlib.sha256(text.encode()).hexdigest()
  both = [*_accepted(digests['position.json']), new]
  for path, content in (
    (manifest, json.dumps(digests | {'position.json': both}, indent=1)),
    (folder / 'position.json', text),
    (manifest, json.dumps(digests | {'position.json': new}, indent=1)),
  ):
    try:
      write_whole(path, content)
    except OSError as error:
      raise SaveError(
        f'{path} could not be written ({error}); it stands as it was'
      ) from error


def _finish(
  target: pathlib.Path,
  arrays: list[ocp.AsyncResponse[None]],
  shapes: Mapping[str, Shapes],
  position: Mapping[str, object],
  keep: int,
  keep_best: bool,
) -> None:
  """Waits for the arrays of all processes; the manifest makes it count."""
  with _saving(target):
    # All are asked, also where one fails: what still wrote would come back.
    with contextlib.ExitStack() as written:
      for array in arrays:
        written.callback(array.result)
    if jax.process_index() != 0:
      return
    for name, expected in shapes.items():
      _check_readable(target / name / 'state', expected)
    write_whole(target / 'position.json', json.dumps(position))
    write_whole(target / MANIFEST, json.dumps(_digests(target), indent=1))
  done = sorted(p.parent for p in target.parent.glob(f'*/{MANIFEST}'))
  kept = done[-keep:]
  if keep_best:
    kept += [x for x in _by_score(done) if x == target or not _fault(x)][:1]
  for old in set(done) - set(kept):
    shutil.rmtree(old)


def _shapes(tree: Tree) -> Shapes:
  """Shape of every array, by the name that Orbax gives it: a.b.c."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): np.shape(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _check_readable(folder: pathlib.Path, expected: Shapes) -> None:
  """Finds every part of every array in the database that `_load` opens.

  Orbax merges what the processes wrote into one database, and only warns where
  it found nothing to merge. Nothing of the arrays is read.

  Raises:
    ValueError: an array, or a part of one, is not there.
  """
  base = {'driver': 'file', 'path': f'{folder.resolve()}/'}
  store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
  keys = [key.decode() for key in store.list().result()]
  parts = collections.Counter(key.partition('/c')[0] for key in keys)
  for name, shape in expected.items():
    if f'{name}/zarr.json' not in keys:
      raise ValueError(f'{name} is not in what was written')
    header = json.loads(store.read(f'{name}/zarr.json').result().value)
    chunk = header['chunk_grid']['configuration']['chunk_shape']
    if tuple(header['shape']) != shape:
      raise ValueError(f'{name} has the shape {header["shape"]}, not {shape}')
    wanted = math.prod(-(-n // size) for n, size in zip(shape, chunk))
    if parts[name] != wanted:
      raise ValueError(f'{name} has {parts[name]} of {wanted} parts')


@contextlib.contextmanager
def _saving(target: pathlib.Path) -> Generator[None, None, None]:
  """Deletes what was written where that fails, and says so in one line."""
  try:
    with processes.connected():
      yield
  except (jax.errors.JaxRuntimeError, processes.LostProcessError):
    raise  # Of devices and other processes, not of files.
  except Exception as error:  # TensorStore has no class of its own for it.
    if jax.process_index() == 0:
      shutil.rmtree(target, ignore_errors=True)
    # Its end says why: TensorStore names every file on the way there.
    reason = ' '.join(str(error).split()).replace(f'{target}/', '')
    if len(reason) > 300:
      reason = f'{reason[:100]} ... {reason[-200:]}'
    raise SaveError(
      f'the checkpoint {target} could not be written ({reason}); earlier'
      ' ones stand'
    ) from error


def restore(directory: pathlib.Path, abstract: State) -> Restored[State] | None:
  """The newest checkpoint that verifies, or None.

  Args:
    directory: of one stage.
    abstract: the train state to fill, as arrays or `jax.ShapeDtypeStruct`s
      with shardings.
  """
  folder = newest(directory)
  if folder is None:
    return None
  target: Any = flax.serialization.to_state_dict(abstract)
  params = _load(folder / 'params', target.pop('params'))
  values = _load(folder / 'rest', target) | {'params': params}
  state: Any = flax.serialization.from_state_dict(abstract, values)
  return Restored(
    step=int(folder.name),
    state=state,
    position=json.loads((folder / 'position.json').read_text()),
  )


def restore_params(
  directory: pathlib.Path, abstract: Params, *, best: bool = False
) -> tuple[Params, int]:
  """Parameters and step of the newest checkpoint that verifies.

  Args:
    directory: of one stage.
    abstract: the parameters to fill; see `restore`.
    best: of those with a score, the one with the largest, instead.

  Raises:
    FileNotFoundError: there is none.
  """
  folder = newest(directory, best=best)
  if folder is None:
    scored = ' and has a score' if best else ''
    raise FileNotFoundError(
      f'no checkpoint that verifies{scored} in {directory}'
    )
  return _load(folder / 'params', abstract), int(folder.name)


def fingerprint(directory: pathlib.Path) -> str:
  """Of the parameters of the newest step that verifies; '' where there is none."""
  folder = newest(directory)
  if folder is None:
    return ''
  digests = json.loads((folder / MANIFEST).read_text())
  params = sorted(x for x in digests.items() if x[0].startswith('params/'))
  return hashlib.sha256(json.dumps(params).encode()).hexdigest()[:16]


def newest(
  directory: pathlib.Path, *, best: bool = False
) -> pathlib.Path | None:
  """The newest step that verifies, or the best; None where there is none.

  One that does not is passed over with a warning that names it and the file
  at fault. Process 0 looks and all take what it finds, so every process must
  ask.
  """
  directory, found = directory.absolute(), None
  if jax.process_index() == 0:
    folders = sorted(directory.glob('[0-9]*'), reverse=True)
    for folder in _by_score(folders) if best else folders:
      fault = _fault(folder)
      if not fault:
        found = folder.name
        break
      logging.warning('checkpoint %s is passed over: %s', folder, fault)
  found, *_ = processes.exchange(found)
  return directory / found if found else None


def _by_score(folders: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """Those with a score, the largest first; of equals the earliest step."""
  scores = {}
  for folder in sorted(folders):
    with contextlib.suppress(OSError, ValueError):  # Damaged; see `newest`.
      position = json.loads((folder / 'position.json').read_text())
      # Runs of before the setting have none.
      if position.get('score') is not None:
        scores[folder] = position['score']
  return sorted(scores, key=lambda folder: scores[folder], reverse=True)


def _load(path: pathlib.Path, abstract: Tree) -> Tree:
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    abstract,
  )
  try:
    loaded: Any = ocp.load(str(path), target)
  except (OSError, ValueError, KeyError) as error:
    reason = ' '.join(str(error).split())[:300]
    raise RestoreError(
      f'the checkpoint {path} cannot be read as these parameters ({reason})'
    ) from error
  return loaded


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
    if found[name] not in _accepted(expected[name]):
      return f'{name} is damaged'
  return ''


def _accepted(digests: str | list[str]) -> list[str]:
  return [digests] if isinstance(digests, str) else digests


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of every file below the folder except the manifest."""
  # What `amend` leaves behind where it is killed does no harm.
  aside = {folder / name for name in (MANIFEST, 'manifest.tmp', 'position.tmp')}
  digests = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path not in aside:
      with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
      digests[str(path.relative_to(folder))] = digest
  return digests
