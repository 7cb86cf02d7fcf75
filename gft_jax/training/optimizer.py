"""Settings -> optax chain and schedule."""

import optax

from gft_jax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """Learning rate by optimizer step.

  Linear warm-up from 0 over `warmup_steps`, so that the first step runs at
  rate 0 as in verl's SFT and DFT trainers; then constant, or a cosine to a
  fiftieth of the peak at `total_steps`.
  """
  peak, warmup = config.learning_rate, config.warmup_steps
  after = {
    'constant': lambda: optax.constant_schedule(peak),
    'cosine': lambda: optax.cosine_decay_schedule(
      peak, max(total_steps - warmup, 1), alpha=0.02
    ),
  }[config.schedule]()
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
  config: OptimizerConfig, total_steps: int
) -> optax.GradientTransformation:
  """AdamW under a global-norm clip.

  Deviation from torch, whose clip factor is min(1, c / (norm + 1e-6)): optax
  has no 1e-6. The decoupled decay equals torch's AdamW.
  """
  clip = (
    [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  )
  return optax.chain(
    *clip,
    optax.adamw(
      make_schedule(config, total_steps),
      b1=config.b1,
      b2=config.b2,
      eps=config.epsilon,
      weight_decay=config.weight_decay,
      mu_dtype=config.mu_dtype,
    ),
  )
