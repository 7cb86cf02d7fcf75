"""One training step: advantages -> loss -> gradient -> update -> metrics.

Pure and unjitted; programs.py compiles it. `make_train_step` has the arguments.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from jaxtyping import Float

from gft_jax.batch import GroupBatch
from gft_jax.config import LossConfig
from gft_jax.models import forward, lora
from gft_jax.ops.masking import WeightedMean
from gft_jax.training import loss, metrics, objectives
from gft_jax.training.loss import MicroBatch, StepSettings
from gft_jax.training.metrics import Maxima, Metrics
from gft_jax.training.microbatches import accumulate, join, split
from gft_jax.types import Array, Model, Params


def train_step(
  state: TrainState,
  batch: GroupBatch,
  reference: Params | None = None,
  frozen: Params | None = None,
  *,
  model: Model,
  settings: StepSettings,
) -> tuple[TrainState, Metrics, Maxima]:
  """Advantages of the whole rollout, then one update per mini-batch."""
  advantages = objectives.advantages_of(
    settings.objective, batch, settings.loss
  )
  behavior: Metrics = {}
  if settings.recomputes_behavior and not settings.behaves_as_itself:
    params = lora.join(frozen, state.params)
    batch, behavior = with_behavior(params, batch, model, settings)

  def update(state: TrainState, mini: tuple[GroupBatch, Float[Array, 'B G']]):
    gradients, measured, maxima = gradients_of(
      state, mini, reference, frozen, model, settings
    )
    state = apply(state, gradients)
    norm = WeightedMean(optax.tree.norm(gradients), jnp.float32(1))
    return state, (measured | {'grad_norm': norm}, maxima)

  state, (measured, maxima) = jax.lax.scan(
    update, state, split((batch, advantages), settings.mini_batches)
  )
  measured = jax.tree.map(lambda x: jnp.sum(x, axis=0), measured)
  maxima = jax.tree.map(lambda x: jnp.max(x, axis=0), maxima)
  described = metrics.describe(batch, scored=settings.objective.is_scored)
  return state, measured | behavior | described, maxima


def gradients_of(
  state: TrainState,
  mini: tuple[GroupBatch, Float[Array, 'B G']],
  reference: Params | None,
  frozen: Params | None,
  model: Model,
  settings: StepSettings,
) -> tuple[Params, Metrics, Maxima]:
  """Gradient of the loss of a mini-batch, added up over its micro-batches.

  The denominators are those of the whole mini-batch, so the gradients of its
  micro-batches add exactly. (The official code averages micro-batch means with
  equal weight, ZJU-OmniAI/GFT at 763384d, dp_actor.py:621; that is another
  objective wherever lengths differ.)

  Args:
    state: of training, before the update.
    mini: whole groups and their advantages [B, G].
    reference: as `make_train_step`, and so for the rest.
  """
  batch, advantages = mini
  inputs = loss.fixed_inputs(batch, advantages)
  step = jnp.asarray(state.step)
  names, shares = loss.token_shares(settings, inputs, step)
  if reference is not None:
    reference = lora.join(frozen, reference)

  def differentiate(micro: MicroBatch):
    return jax.grad(loss.loss_of, has_aux=True)(
      state.params,
      micro,
      reference,
      frozen,
      step,
      model=model,
      settings=settings,
    )

  (measured, maxima), gradients = accumulate(
    differentiate,
    MicroBatch(batch, advantages, shares),
    settings.micro_batches,
  )
  values = {'loss': measured.loss}
  if len(names) > 1:
    values |= {f'loss_{n}': x for n, x in zip(names, measured.summands)}
  one = jnp.float32(1)
  named = {name: WeightedMean(x, one) for name, x in values.items()}
  return gradients, measured.metrics | named, maxima


@jax.named_scope('optimizer')
def apply(state: TrainState, gradients: Params) -> TrainState:
  """One update of the optimizer."""
  return state.apply_gradients(grads=gradients)


@jax.named_scope('behavior')
def with_behavior(
  params: Params, batch: GroupBatch, model: Model, settings: StepSettings
) -> tuple[GroupBatch, Metrics]:
  """The batch with log-probabilities of the policy as the step begins.

  Also how far they are from the sampler's.
  """

  def read(part: GroupBatch) -> Float[Array, 'B G T']:
    logp, _ = forward.token_logprobs(
      model,
      params,
      part,
      chunk=settings.loss.chunk,
      temperature=settings.own_temperature,
    )
    return logp

  parts = settings.mini_batches * settings.micro_batches
  logp = join(jax.lax.map(read, split(batch, parts)))
  mismatch = {'sampler_mismatch': metrics.sampler_mismatch(logp, batch)}
  responses = batch.responses.replace(behavior_logp=logp)
  batch = batch.replace(responses=responses)
  return batch, mismatch if settings.reads_as_sampled else {}


def make_train_step(
  model: Model,
  objective: objectives.Objective,
  settings: LossConfig,
  *,
  temperature: float = 1.0,
  mini_batches: int = 1,
  micro_batches: int = 1,
) -> Callable[..., tuple[TrainState, Metrics, Maxima]]:
  """Builds `step(state, batch, reference=None, frozen=None)`.

  Args:
    model: entrances `prefill`, `respond` and `head`, and `packed` for batches
      in rows.
    objective: a row of objectives.OBJECTIVES.
    settings: hyper-parameters of the loss; None is as published.
    temperature: of the sampler; used by on-policy objectives only.
    mini_batches: optimizer updates per call; divides B.
    micro_batches: parts of a mini-batch; divides B / mini_batches.

  Returns:
    A pure function of a train state and scored groups that gives (state,
    metrics, maxima). `reference` is the parameters of the policy that the stage
    started from; it is read where `kl_weight` is not 0, and may be None
    otherwise. `frozen` is what the model needs besides the parameters of the
    state and of the reference, see models.lora; it gets no gradient. Metrics
    are WeightedMeans; maxima are scalars.
  """
  static = StepSettings(
    objective,
    objectives.resolve(settings, objective),
    temperature,
    mini_batches,
    micro_batches,
  )

  def step(
    state: TrainState,
    batch: GroupBatch,
    reference: Params | None = None,
    frozen: Params | None = None,
  ) -> tuple[TrainState, Metrics, Maxima]:
    return train_step(
      state, batch, reference, frozen, model=model, settings=static
    )

  return step


def create_state(
  model: Model, params: Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """A Flax train state at step 0 with fresh optimizer state."""
  state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
  return state.replace(step=jnp.int32(0))
