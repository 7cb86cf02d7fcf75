"""One training step: advantages -> loss -> gradient -> update -> metrics.

Pure and unjitted; programs.py compiles it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from gft_jax.batch import GroupBatch
from gft_jax.config import LossConfig
from gft_jax.models import lora
from gft_jax.models.forward import token_logprobs
from gft_jax.ops.masking import WeightedMean
from gft_jax.training import objectives
from gft_jax.training.loss import (
  MicroBatch,
  StepSettings,
  fixed_inputs,
  loss_of,
  token_shares,
)
from gft_jax.training.metrics import Maxima, Metrics, describe, sampler_mismatch
from gft_jax.training.microbatches import accumulate, join, split
from gft_jax.training.objectives import Objective
from gft_jax.types import Model, Params


def train_step(
  state: TrainState,
  batch: GroupBatch,
  reference: Params | None = None,
  frozen: Params | None = None,
  *,
  model: Model,
  settings: StepSettings,
) -> tuple[TrainState, Metrics, Maxima]:
  """Advantages of the whole rollout, then one update per mini-batch.

  Inside a mini-batch of whole groups the denominators are those of the whole
  mini-batch, so the gradients of its micro-batches add exactly. (The official
  code averages micro-batch means with equal weight, ZJU-OmniAI/GFT at 763384d,
  dp_actor.py:621; that is another objective wherever lengths differ.)

  Args:
    state: of training.
    batch: scored groups.
    reference: parameters of the policy that the stage started from; read where
      `loss.kl_weight` is not 0, and may be None otherwise.
    frozen: what the model needs besides the parameters of the state and of the
      reference, see models.lora; it gets no gradient.
    model: entrances `prefill`, `respond` and `head`, and `packed` for batches
      in rows.
    settings: objective, hyper-parameters, and how the batch is cut.
  """
  with jax.named_scope('group_advantages'):
    advantages = objectives.advantages_of(
      settings.objective, batch, settings.loss
    )
  if reference is not None:
    reference = lora.join(frozen, reference)
  mismatch: Metrics = {}
  if settings.recomputes_behavior and not settings.behaves_as_itself:
    params = lora.join(frozen, state.params)
    batch, mismatch = with_behavior(model, settings, params, batch)
  update = functools.partial(
    update_once, reference, frozen, model=model, settings=settings
  )
  state, (metrics, maxima) = jax.lax.scan(
    update, state, split((batch, advantages), settings.mini_batches)
  )
  metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
  maxima = jax.tree.map(lambda x: jnp.max(x, axis=0), maxima)
  scored = settings.objective.advantages is not None
  return state, metrics | mismatch | describe(batch, scored=scored), maxima


def update_once(
  reference: Params | None,
  frozen: Params | None,
  state: TrainState,
  mini: tuple[GroupBatch, jax.Array],
  *,
  model: Model,
  settings: StepSettings,
) -> tuple[TrainState, tuple[Metrics, Maxima]]:
  """One optimizer update on a mini-batch: groups and their advantages."""
  batch, advantages = mini
  inputs = fixed_inputs(batch, advantages, state.step)
  names, shares = token_shares(settings, inputs)
  gradient_of = jax.grad(
    functools.partial(loss_of, model=model, settings=settings), has_aux=True
  )
  (measured, maxima), gradients = accumulate(
    lambda micro: gradient_of(
      state.params, micro, reference, frozen, state.step
    ),
    MicroBatch(batch, advantages, shares),
    settings.micro_batches,
  )
  norm = optax.global_norm(gradients)
  with jax.named_scope('optimizer'):
    state = state.apply_gradients(grads=gradients)
  values = {'loss': measured.loss, 'grad_norm': norm}
  if len(names) > 1:
    values |= {f'loss_{n}': x for n, x in zip(names, measured.summands)}
  one = jnp.float32(1)
  metrics = {name: WeightedMean(x, one) for name, x in values.items()}
  return state, (measured.metrics | metrics, maxima)


@jax.named_scope('behavior')
def with_behavior(
  model: Model, settings: StepSettings, params: Params, batch: GroupBatch
) -> tuple[GroupBatch, Metrics]:
  """The batch with log-probabilities of the policy as the step begins.

  Also how far they are from the sampler's.
  """

  def read(part: GroupBatch) -> jax.Array:
    logp, _ = token_logprobs(
      model,
      params,
      part,
      chunk=settings.loss.chunk,
      temperature=settings.own_temperature,
    )
    return logp

  parts = settings.mini_batches * settings.micro_batches
  logp = join(jax.lax.map(read, split(batch, parts)))
  mismatch = {'sampler_mismatch': sampler_mismatch(logp, batch)}
  responses = batch.responses.replace(behavior_logp=logp)
  batch = batch.replace(responses=responses)
  return batch, mismatch if settings.reads_as_sampled else {}


def make_train_step(
  model: Model,
  objective: Objective,
  loss: LossConfig,
  *,
  temperature: float = 1.0,
  mini_batches: int = 1,
  micro_batches: int = 1,
) -> Callable[..., tuple[TrainState, Metrics, Maxima]]:
  """`train_step` of these settings: `step(state, batch, reference, frozen)`.

  A field of `loss` that is None is as the objective was published.
  """
  settings = StepSettings(
    objective,
    objectives.resolve(loss, objective),
    temperature,
    mini_batches,
    micro_batches,
  )

  def step(state, batch, reference=None, frozen=None):
    return train_step(
      state, batch, reference, frozen, model=model, settings=settings
    )

  return step


def create_state(
  model: Model, params: Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """A Flax train state at step 0 with fresh optimizer state."""
  state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
  return state.replace(step=jnp.int32(0))
