"""Every setting of a run, the command line's way in, and one-line errors.

Takes assignments such as `loss.tau=0.2` and gives frozen dataclasses whose
values are checked. Never imports JAX, so that a script's --help is instant.
"""

from gft_jax.config.checks import (
  ConfigError,
  nearest,
  not_negative,
  one_of,
  positive,
  require,
  user_path,
)
from gft_jax.config.overrides import (
  differences,
  fields_with_meaning,
  for_stage,
  from_dict,
  overridden,
  override,
  to_dict,
)
from gft_jax.config.settings import (
  PROJECTIONS,
  Architecture,
  CheckpointConfig,
  Config,
  DataConfig,
  EvalConfig,
  GroupConfig,
  LogConfig,
  LoraConfig,
  LossConfig,
  MeshConfig,
  ModelConfig,
  OptimizerConfig,
  RewardConfig,
  SamplerConfig,
  Stage,
  profiled_steps,
  template_arguments,
)

__all__ = [
  'PROJECTIONS',
  'Architecture',
  'CheckpointConfig',
  'Config',
  'ConfigError',
  'DataConfig',
  'EvalConfig',
  'GroupConfig',
  'LogConfig',
  'LoraConfig',
  'LossConfig',
  'MeshConfig',
  'ModelConfig',
  'OptimizerConfig',
  'RewardConfig',
  'SamplerConfig',
  'Stage',
  'differences',
  'fields_with_meaning',
  'for_stage',
  'from_dict',
  'nearest',
  'not_negative',
  'one_of',
  'overridden',
  'override',
  'positive',
  'profiled_steps',
  'require',
  'template_arguments',
  'to_dict',
  'user_path',
]
