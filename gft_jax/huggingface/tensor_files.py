"""Named tensors in the safetensors files of a folder, read part by part.

A file is open only while something is read from it: the pages of a mapped
file count as memory of the process, and would add up to the whole model.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import safetensors
import safetensors.numpy
from huggingface_hub import split_state_dict_into_shards_factory

from gft_jax.config import ConfigError, require
from gft_jax.huggingface.json_files import read_json, write_json

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
PATTERN = 'model{suffix}.safetensors'
UNITS = {'B': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9, 'TB': 10**12}
PICKLED = ('*.bin', '*.pt', '*.pth')


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor that has not been read.

  Attributes:
    name: in its file.
    path: of the file.
    shape: of the whole.
    dtype: as safetensors spells it, such as BF16.
  """

  name: str
  path: pathlib.Path
  shape: tuple[int, ...]
  dtype: str

  def read(self, index: Sequence[slice]) -> np.ndarray:
    """The part at `index`, a slice without step per dimension."""
    with safetensors.safe_open(self.path, 'numpy') as file:
      return file.get_slice(self.name)[tuple(index)]


def scan(directory: pathlib.Path) -> dict[str, StoredTensor]:
  """Every tensor of a folder by its name; only headers are read.

  Raises:
    ConfigError: no weights, a damaged file, or an index that does not tell
      where the tensors are.
  """
  if (directory / SINGLE).is_file():
    return {t.name: t for t in _tensors_of(directory / SINGLE)}
  pickled = [p.name for pattern in PICKLED for p in directory.glob(pattern)]
  require(
    (directory / INDEX).is_file(),
    f'{directory} has neither {SINGLE} nor {INDEX}'
    + (
      f', only {min(pickled)}: nothing is unpickled here, so save the model as'
      ' safetensors first'
      if pickled
      else ''
    ),
  )
  places = _read_index(directory / INDEX)
  found: dict[str, StoredTensor] = {}
  for file in sorted(set(places.values())):
    path = directory / file
    require(path.is_file(), f'{directory} has no {file}, which {INDEX} lists')
    for tensor in _tensors_of(path):
      require(
        tensor.name not in found,
        f'{directory}: the tensor {tensor.name} is in {file} and in another'
        ' file',
      )
      found[tensor.name] = tensor
  for name, file in places.items():
    require(
      name in found and found[name].path.name == file,
      f'{directory}: {INDEX} says that {file} has {name}, but it has not',
    )
  return found


def _read_index(path: pathlib.Path) -> dict[str, str]:
  places = read_json(path).get('weight_map')
  if not isinstance(places, dict) or not places:
    raise ConfigError(f'{path} has no weight_map from tensors to files')
  for name, file in places.items():
    # A name alone: an index must not lead out of its folder.
    require(
      isinstance(file, str) and bool(re.fullmatch(r'[\w.-]+\.\w+', file)),
      f'{path}: {name} is in {file!r}, which is not the name of a file',
    )
  return places


def _tensors_of(path: pathlib.Path) -> list[StoredTensor]:
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      views = {name: file.get_slice(name) for name in file.keys()}
      return [
        StoredTensor(name, path, tuple(view.get_shape()), view.get_dtype())
        for name, view in views.items()
      ]
  except (OSError, safetensors.SafetensorError) as error:
    raise ConfigError(f'{path} is not readable: {error}') from error


def bytes_of(size: str) -> int:
  """'5GB', of powers of ten, as a number.

  Raises:
    ConfigError: not a size.
  """
  match = re.fullmatch(r'([1-9]\d*)([KMGT]?B)', size.strip().upper())
  if match is None:
    raise ConfigError(f'{size!r} is not a size; right are 5GB or 500MB')
  return int(match[1]) * UNITS[match[2]]


def save(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
  """Writes one file of tensors, which whoever reads the folder may read.

  safetensors gives its files to their owner alone.
  """
  safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})
  path.chmod(path.parent.stat().st_mode & 0o666)


def write(
  directory: pathlib.Path,
  shapes: Mapping[str, jax.ShapeDtypeStruct | np.ndarray],
  read: Callable[[str], np.ndarray],
  max_shard_size: int,
) -> None:
  """Writes tensors into one file, or into several and an index.

  Args:
    directory: earlier weights in it are deleted.
    shapes: name -> what has a shape and a dtype.
    read: name -> contiguous array; called once for each. One file's arrays are
      in memory at a time.
    max_shard_size: bytes of a file. A larger tensor has a file of its own.
  """
  split = split_state_dict_into_shards_factory(
    dict(shapes),
    get_storage_size=lambda x: math.prod(x.shape) * x.dtype.itemsize,
    filename_pattern=PATTERN,
    max_shard_size=max_shard_size,
  )
  # Readers would prefer some of them to what is written now.
  for suffix in ('', '-?????-of-?????'):
    for earlier in directory.glob(PATTERN.format(suffix=suffix)):
      earlier.unlink()
  (directory / INDEX).unlink(missing_ok=True)
  for file, names in split.filename_to_tensors.items():
    save({name: read(name) for name in names}, directory / file)
  if split.is_sharded:
    index = {
      'metadata': split.metadata,
      'weight_map': split.tensor_to_filename,
    }
    write_json(directory / INDEX, index)
