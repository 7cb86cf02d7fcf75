"""What is trained: loaded, restored from a run, and written for others."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from gft_jax import huggingface
from gft_jax.config import (
  Config,
  ConfigError,
  LoraConfig,
  MeshConfig,
  overridden,
  require,
  user_path,
)
from gft_jax.data import arithmetic
from gft_jax.huggingface import hub, peft
from gft_jax.models import lora, transformer
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh
from gft_jax.parallel.sharding import create_sharded
from gft_jax.run import checkpoint
from gft_jax.run.workdir import (
  check_stage,
  check_unchanged,
  found_again,
  read_config,
  split_stage,
  stage_config,
  stage_directory,
)
from gft_jax.types import Params

# Named random streams; see `key_of`.
STREAMS = {'init': 0, 'sample': 1, 'evaluate': 2, 'drift': 3, 'show': 4}


class Policy(NamedTuple):
  """What is trained, and what that needs.

  Attributes:
    model: a Flax module with the entrances of models.transformer.
    params: what is trained, where the first stage starts; a plain pytree.
    tokenizer: a transformers tokenizer with an EOS.
    eos_ids: every EOS that the model's folder names, and what ends a turn in
      the chat template; sampler.stop_ids and sampler.stop_strings end an
      answer too.
    frozen: the other parameters of the model, or None; see models.lora.
  """

  model: transformer.Transformer
  params: Params
  tokenizer: PreTrainedTokenizerBase
  eos_ids: tuple[int, ...]
  frozen: Params | None = None


class LoadedStage(NamedTuple):
  """A stage of a run, as it is loaded again.

  Attributes:
    config: its settings.
    policy: its model and tokenizer, with the parameters where the run starts.
    params: what the stage has reached.
    step: its step.
  """

  config: Config
  policy: Policy
  params: Params
  step: int


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


def load_stage(
  workdir: str | pathlib.Path,
  stage: str,
  *,
  best: bool = False,
  config: Config | None = None,
) -> LoadedStage:
  """A stage of a run, ready to sample and to be measured.

  Args:
    workdir: of the run.
    stage: its name.
    best: the step with the largest `checkpoint.best`, not the last.
    config: settings to load it under; by default those of the stage.

  Raises:
    ConfigError: no run, no such stage, or no checkpoint of it that verifies.
  """
  config = config or stage_config(workdir, stage, best)
  try:
    policy = load_policy(config)
  except ConfigError as error:
    path = config.model.path
    if not path or split_stage(path) or pathlib.Path(path).exists():
      raise
    raise ConfigError(
      f'{error}; where the folder has moved, --set model.path=FOLDER names it'
    ) from error
  check_unchanged(pathlib.Path(workdir), fingerprint_of(config))
  params, step = restore_stage(policy, workdir, stage, best=best)
  return LoadedStage(config, policy, params, step)


def export_stage(
  workdir: str | pathlib.Path,
  stage: str,
  directory: str | pathlib.Path,
  *,
  best: bool = False,
  adapter: bool = False,
  max_shard_size: int = 5 * 10**9,
  assignments: Sequence[str] = (),
) -> int:
  """Writes a stage of a run as a folder for `transformers`; returns its step.

  Adapters of `model.lora` are merged into the weights; `data.template_args` and
  `data.system` become defaults of the chat template. A run of more devices than
  are here is loaded onto one.

  Args:
    workdir: of the run.
    stage: its name.
    directory: to write; see `huggingface.save`.
    best: the step with the largest `checkpoint.best`, not the last.
    adapter: write the adapters alone, as a folder for PEFT.
    max_shard_size: bytes of a file of weights; more go into several files.
    assignments: override settings of the run, as model.path where its model
      has moved.

  Raises:
    ConfigError: as `load_stage`, or `adapter` of a run without adapters.
  """
  config = found_again(read_config(workdir), workdir)
  config = overridden(config, assignments)
  check_stage(config, stage, best)
  if adapter and not config.model.lora.rank:
    raise ConfigError(
      '--adapter: the run has no adapters (model.lora.rank=0); without the'
      ' flag its weights are exported'
    )
  if config.mesh.size > jax.device_count():
    config = dataclasses.replace(config, mesh=MeshConfig())
  _, policy, params, step = load_stage(workdir, stage, best=best, config=config)
  if adapter:
    require(
      split_stage(config.model.path) is None,
      f'--adapter: PEFT finds no folder in model.path={config.model.path}; export'
      ' that stage and train on the folder, or leave out the flag',
    )
    base = str(user_path(config.model.path, 'model.path'))
    peft.save(directory, policy.model, params, base=base)
  else:
    huggingface.save(
      directory,
      policy.model,
      lora.merge(policy.model, policy.frozen, params),
      policy.tokenizer,
      source=source_of(config.model.path),
      max_shard_size=max_shard_size,
      template_args=config.data.template_args,
      system=config.data.system,
    )
  return step


def source_of(path: str) -> str | None:
  """The folder or hub id behind `model.path`; None if there is none."""
  run = split_stage(path)
  if run is None:
    return path or None
  config = found_again(read_config(run[0]), run[0])
  return source_of(config.model.path)


def fingerprint_of(config: Config) -> Iterator[tuple[str, str]]:
  """(model.path, fingerprint) where the model is a stage of another run.

  That run may go on, and would give other parameters under the same name.
  """
  run = split_stage(config.model.path)
  if run is not None:
    directory = stage_directory(pathlib.Path(run[0]), run[1])
    yield f'model.path={config.model.path}', checkpoint.fingerprint(directory)


def load_policy(config: Config) -> Policy:
  """The model of the config, or fresh parameters, on its mesh.

  A model is a folder, or a stage of another run. With `model.lora` its
  parameters are frozen, and fresh adapters trained.

  Raises:
    ConfigError: no such folder or stage, a model that is not supported, or too
      few devices.
  """
  if not config.model.path:
    return _from_scratch(config)
  run = split_stage(config.model.path)
  policy = _from_run(config, *run) if run else _from_folder(config)
  rank = config.model.lora.rank
  if not rank:
    return policy
  model = policy.model.clone(lora=config.model.lora)
  adapters = lora.create(
    model, key_of(config.seed, 'init', 0), _shardings(config)
  )
  return policy._replace(model=model, params=adapters, frozen=policy.params)


def _shardings(config: Config) -> Callable[[Params], Params]:
  """Tree of shapes -> tree of shardings on the mesh of the config."""
  mesh = make_mesh(config.mesh)
  return functools.partial(sharding.parameter_shardings, mesh=mesh)


def _from_run(config: Config, workdir: str, stage: str) -> Policy:
  """The result of a stage of another run, computed as this config says."""
  try:
    begun = stage_config(workdir, stage)
  except ConfigError as error:
    raise ConfigError(f'model.path={workdir}:{stage}: {error}') from error
  model = dataclasses.replace(
    config.model,
    path=begun.model.path,
    tokenizer=begun.model.tokenizer,
    architecture=begun.model.architecture,
    lora=begun.model.lora,
  )
  begun = dataclasses.replace(begun, model=model, mesh=config.mesh)
  policy = load_policy(begun)
  params, _ = restore_stage(policy, workdir, stage)
  if policy.frozen is None:
    return policy._replace(params=params)
  require(
    jax.process_count() == 1,
    f'model.path={workdir}:{stage} has adapters, which one process alone can'
    ' merge; export the stage, and name the folder',
  )
  merged = lora.merge(policy.model, policy.frozen, params)
  merged = jax.device_put(merged, _shardings(config)(merged))
  model = policy.model.clone(lora=LoraConfig())
  return policy._replace(model=model, params=merged, frozen=None)


def _from_folder(config: Config) -> Policy:
  settings = config.model
  folder = hub.folder_of(settings.path)
  model, params, tokenizer = huggingface.load(
    folder,
    dtype=settings.dtype,
    param_dtype=settings.param_dtype,
    remat=settings.remat,
    shardings=_shardings(config),
  )
  eos_ids = huggingface.stop_ids(
    folder, tokenizer, model.architecture.vocab_size
  )
  return Policy(model, params, tokenizer, eos_ids)


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
  return Policy(model, params, tokenizer, huggingface.end_ids(tokenizer))
