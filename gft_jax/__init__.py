"""Group Fine-Tuning (GFT) in JAX: from imitation to reward in one objective.

Paper: arXiv 2604.14258. The names below load on first use (PEP 562), so that
importing the package, or one pure room of it, costs nothing.
"""

import importlib

__version__ = '0.1.0'

_HOME = {
  'group_normalized': 'gft_jax.ops.advantages',
  'mean_centred': 'gft_jax.ops.advantages',
  'leave_one_out': 'gft_jax.ops.advantages',
  'dynamic_coefficient': 'gft_jax.ops.rectification',
  'sft_token_loss': 'gft_jax.ops.losses',
  'dft_token_loss': 'gft_jax.ops.losses',
  'gft_token_loss': 'gft_jax.ops.losses',
  'psft_token_loss': 'gft_jax.ops.losses',
  'luffy_token_loss': 'gft_jax.ops.losses',
  'chord_token_loss': 'gft_jax.ops.losses',
  'grpo_token_loss': 'gft_jax.ops.losses',
  'target_logprobs': 'gft_jax.ops.logprobs',
  'WeightedMean': 'gft_jax.ops.masking',
  'token_mean': 'gft_jax.ops.masking',
  'sequence_mean': 'gft_jax.ops.masking',
  'token_sum': 'gft_jax.ops.masking',
  'pass_at_k': 'gft_jax.ops.passk',
  'Prompts': 'gft_jax.batch',
  'Responses': 'gft_jax.batch',
  'GroupBatch': 'gft_jax.batch',
  'Objective': 'gft_jax.training.objectives',
  'Term': 'gft_jax.training.objectives',
  'Config': 'gft_jax.config',
  'override': 'gft_jax.config',
  'sample_groups': 'gft_jax.rollout.sampler',
  'train': 'gft_jax.loop',
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
  return __all__
