"""What is trained: model, parameters, tokenizer, and the random keys."""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gft_jax import huggingface
from gft_jax.config import Config, ConfigError
from gft_jax.data import arithmetic
from gft_jax.huggingface import hub
from gft_jax.models import lora, transformer
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh
from gft_jax.parallel.sharding import create_sharded
from gft_jax.run import checkpoint
from gft_jax.run.workdir import stage_directory

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

  model: Any
  params: Any
  tokenizer: Any
  eos_ids: tuple[int, ...]
  frozen: Any | None = None


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
) -> tuple[Any, int]:
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
  """
  settings = config.model
  key = key_of(config.seed, 'init', 0)
  dtypes = {
    'dtype': settings.dtype,
    'param_dtype': settings.param_dtype,
    'remat': settings.remat,
  }
  if settings.path:
    mesh = make_mesh(config.mesh)
    shardings = functools.partial(sharding.parameter_shardings, mesh=mesh)
    folder = hub.folder_of(settings.path)
    model, params, tokenizer = huggingface.load(
      folder, **dtypes, shardings=shardings
    )
    eos_ids = huggingface.stop_ids(
      folder, tokenizer, model.architecture.vocab_size
    )
  else:
    if settings.lora.rank:
      raise ConfigError(
        f'model.lora.rank={settings.lora.rank} would freeze random weights; set'
        ' model.path, or rank 0'
      )
    if settings.tokenizer:
      tokenizer = huggingface.load_tokenizer(settings.tokenizer)
    else:
      tokenizer = arithmetic.tokenizer()
    architecture = settings.architecture
    if not architecture.vocab_size:
      architecture = dataclasses.replace(
        architecture, vocab_size=len(tokenizer)
      )
    model = transformer.Transformer(architecture, **dtypes)
    params = jax.jit(model.init)(
      key,
      jnp.zeros((1, 1), jnp.int32),
      jnp.ones(1, jnp.int32),
    )['params']
    params = create_sharded(lambda x: x, params, make_mesh(config.mesh))
    eos_ids = (tokenizer.eos_token_id,)
  frozen = None
  if settings.lora.rank:
    model, frozen = model.clone(lora=settings.lora), params
    params = lora.create(model, key, shardings)
  return Policy(model, params, tokenizer, eos_ids, frozen)
