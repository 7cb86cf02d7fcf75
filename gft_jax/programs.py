"""The compiled programs of a run.

Models, objectives and settings are static, so equal settings share one program
over all stages. The engine calls them on its mesh.
"""

import contextlib
import functools

import jax

from gft_jax.models import forward, reward_model, transformer
from gft_jax.parallel import sharding
from gft_jax.rollout import sampler
from gft_jax.training import objectives, train_step
from gft_jax.training.optimizer import make_optimizer


def precise(dtype: str) -> contextlib.AbstractContextManager[None]:
  """Products of float32 in float32, for programs of a model of that dtype.

  GPUs would round the operands to TF32 by default, and TPUs to bfloat16. CPUs
  compute the same bits either way. What JAX_DEFAULT_MATMUL_PRECISION says
  stands.
  """
  named = jax.config.values['jax_default_matmul_precision']
  if dtype != 'float32' or named is not None:
    return contextlib.nullcontext()
  return jax.default_matmul_precision('highest')


@functools.partial(
  jax.jit,
  static_argnames=(
    'model',
    'group_size',
    'max_tokens',
    'sampling',
  ),
)
def sample(model, params, prompts, key, *, group_size, max_tokens, sampling):
  """sampler.sample_groups; on a mesh, rows leave each device by themselves."""
  run = functools.partial(
    sampler.sample_groups,
    model,
    group_size=group_size,
    max_tokens=max_tokens,
    sampling=sampling,
  )
  return sharding.over_prompts(run, whole=(0, 2))(params, prompts, key)


@functools.partial(jax.jit, static_argnames=('mesh', 'dtype'))
def rollout_copy(params, *, mesh, dtype):
  """Parameters as the sampler uses them, on its mesh of the same devices."""
  return sharding.lay_out(transformer.for_compute(params, dtype), mesh)


token_logprobs = jax.jit(
  forward.token_logprobs,
  static_argnames=('model', 'chunk', 'temperature'),
)
advantages_of = jax.jit(
  objectives.advantages_of, static_argnames=('objective', 'settings')
)
drift = jax.jit(forward.drift, static_argnames=('model', 'chunk'))
demonstration_tokens = jax.jit(
  forward.demonstration_tokens, static_argnames=('model', 'chunk')
)


@functools.partial(
  jax.jit, static_argnames=('model', 'settings'), donate_argnames='state'
)
def update(state, batch, reference, frozen, *, model, settings):
  """train_step.train_step; `state` is donated."""
  return train_step.train_step(
    state, batch, reference, frozen, model=model, settings=settings
  )


response_scores = jax.jit(reward_model.scores, static_argnames='model')
compare_pairs = jax.jit(reward_model.compare, static_argnames='model')
update_reward_model = jax.jit(
  reward_model.update, static_argnames='model', donate_argnames='state'
)

# One optimizer object per setting: it is part of a train state's identity.
optimizer_of = functools.cache(make_optimizer)
