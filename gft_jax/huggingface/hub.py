"""Where a model lies: in a folder, or on the Hugging Face hub."""

import errno
import pathlib
import re

import huggingface_hub
from huggingface_hub import constants, errors

from gft_jax.config import ConfigError, check_local, require, user_path

HUB_ID = re.compile(r'(\w[\w.-]*/[\w.-]+)(?:@([\w./-]+))?')
# What a folder is made of; never a pickle, nor weights in another format.
SETTINGS = ('config.json', 'generation_config.json', 'adapter_config.json')
TOKENIZER = (
  *('tokenizer*', 'vocab.json', 'merges.txt', 'chat_template*'),
  *('added_tokens.json', 'special_tokens_map.json'),
)
WEIGHTS = ('model*.safetensors', 'model.safetensors.index.json')


def folder_of(
  name: str | pathlib.Path, *, weights: bool = True
) -> pathlib.Path:
  """The folder of a model; one on the hub is fetched, or found in the cache.

  Args:
    name: a folder, or owner/name or owner/name@revision on the hub. Without a
      revision it is the newest at each call: give one where a run must be
      repeated.
    weights: whether the weights are needed, or the small files alone.

  Raises:
    ConfigError: neither a folder nor within reach.
  """
  check_local(name, 'folder')
  folder = user_path(name)
  if folder.exists():
    require(folder.is_dir(), f'{folder} is a file, not the folder of a model')
    return folder
  match = HUB_ID.fullmatch(str(name))
  if match is None:
    raise ConfigError(
      f'no folder {folder}, and it is not a hub id (owner/name or'
      ' owner/name@revision)'
    )
  repository, revision = match.groups()
  check_home(str(name))
  try:
    path = huggingface_hub.snapshot_download(
      repository,
      revision=revision,
      allow_patterns=[*SETTINGS, *TOKENIZER, *(WEIGHTS if weights else ())],
    )
  except (OSError, ValueError, errors.HTTPError) as error:
    raise ConfigError(
      f'{name} is neither a folder nor a hub id within reach: {_why(error)}'
    ) from error
  return pathlib.Path(path)


def check_home(name: str) -> None:
  """Raises ConfigError where `name` would be fetched to a folder called ~."""
  require(
    not constants.HF_HUB_CACHE.startswith('~'),
    f'{name} is fetched into the home directory, and there is none (HOME is not'
    ' set); set HF_HOME=DIR in the environment',
  )


def _why(error: Exception) -> str:
  match error:
    case errors.GatedRepoError():
      return 'it is gated; accept its terms on the hub and `hf auth login`'
    case errors.RepositoryNotFoundError():
      return 'no such repository, or a private one that needs `hf auth login`'
    case errors.RevisionNotFoundError():
      return 'the repository has no such revision'
    case errors.LocalEntryNotFoundError():
      return 'the hub does not answer, and no copy is cached here'
    case OSError(errno=errno.EACCES | errno.EROFS):
      return f'{error.filename} cannot be written; set HF_HOME=DIR in the environment'
  return ' '.join(str(error).split())
