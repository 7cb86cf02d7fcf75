"""What is trained: model, parameters, tokenizer, and the random keys."""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from gft_jax import huggingface
from gft_jax.config import Config, ConfigError, require
from gft_jax.data import arithmetic
from gft_jax.huggingface import hub
from gft_jax.models import lora, transformer
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh
from gft_jax.parallel.sharding import create_sharded
from gft_jax.run import checkpoint
from gft_jax.run.workdir import stage_directory
from gft_jax.types import Params

# Named random streams; see `key_of`.
STREAMS = {'init': 0, 'sample': 1, 'evaluate': 2, 'drift': 3, 'show': 4}


class Policy(NamedTuple):
  """What is trained, and what that needs.

  Attributes:
    model: a Flax module with the entrances of models.transformer.
    params: what is trained, where the first stage starts; a plain pytree.
    tokenizer: a transformers tokenizer with an EOS.
    eos_ids: every EOS that the model's folder names; sampler.stop_ids and
      sampler.stop_strings end an answer too.
    frozen: the other parameters of the model, or None; see models.lora.
  """

  model: transformer.Transformer
  params: Params
  tokenizer: PreTrainedTokenizerBase
  eos_ids: tuple[int, ...]
  frozen: Params | None = None


def key_of(seed: int, stream: str, step: int) -> jax.Array:
  """The key of (seed, stream, step); no key is ever stored."""
  root = jax.random.key(seed, impl='threefry2x32')
  return jax.random.fold_in(jax.random.fold_in(root, STREAMS[stream]), step)


def restore_stage(
  policy: Policy,
  workdir: str | pathlib.Path,
  stage: str,
  *,
  best: bool = False,
) -> tuple[Params, int]:
  """Parameters that a stage has reached, and its step.

  With `best` those of the step with the largest `checkpoint.best`.

  Raises:
    ConfigError: the stage has no such checkpoint that verifies.
  """
  directory = stage_directory(pathlib.Path(workdir), stage)
  try:
    return checkpoint.restore_params(directory, policy.params, best=best)
  except FileNotFoundError as error:
    raise ConfigError(str(error)) from None


def load_policy(config: Config) -> Policy:
  """The model of the config, or fresh parameters, on its mesh.

  With `model.lora` the model's are frozen, and fresh adapters trained.

  Raises:
    ConfigError: no such folder, a model that is not supported, or too few
      devices.
  """
  return _from_folder(config) if config.model.path else _from_scratch(config)


def _from_folder(config: Config) -> Policy:
  settings = config.model
  mesh = make_mesh(config.mesh)
  shardings = functools.partial(sharding.parameter_shardings, mesh=mesh)
  folder = hub.folder_of(settings.path)
  model, params, tokenizer = huggingface.load(
    folder,
    dtype=settings.dtype,
    param_dtype=settings.param_dtype,
    remat=settings.remat,
    shardings=shardings,
  )
  eos_ids = huggingface.stop_ids(
    folder, tokenizer, model.architecture.vocab_size
  )
  if not settings.lora.rank:
    return Policy(model, params, tokenizer, eos_ids)
  model = model.clone(lora=settings.lora)
  adapters = lora.create(model, key_of(config.seed, 'init', 0), shardings)
  return Policy(model, adapters, tokenizer, eos_ids, frozen=params)


def _from_scratch(config: Config) -> Policy:
  settings = config.model
  require(
    not settings.lora.rank,
    f'model.lora.rank={settings.lora.rank} would freeze random weights; set'
    ' model.path, or rank 0',
  )
  if settings.tokenizer:
    tokenizer = huggingface.load_tokenizer(settings.tokenizer)
  else:
    tokenizer = arithmetic.tokenizer()
  architecture = settings.architecture
  if not architecture.vocab_size:
    architecture = dataclasses.replace(architecture, vocab_size=len(tokenizer))
  model = transformer.Transformer(
    architecture, settings.dtype, settings.param_dtype, settings.remat
  )
  params = jax.jit(model.init)(
    key_of(config.seed, 'init', 0),
    jnp.zeros((1, 1), jnp.int32),
    jnp.ones(1, jnp.int32),
  )['params']
  params = create_sharded(lambda x: x, params, make_mesh(config.mesh))
  return Policy(model, params, tokenizer, (tokenizer.eos_token_id,))
