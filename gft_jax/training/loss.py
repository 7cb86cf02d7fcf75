"""The loss of a micro-batch: hidden states -> log-probabilities -> summands.

Gradients are made token by token in the forward pass (`fused_token_loss`), so
no logits are kept. A token sees itself as a group of one response of one token.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from gft_jax.batch import GroupBatch
from gft_jax.config import Config, LossConfig
from gft_jax.models import lora, packing
from gft_jax.models.forward import response_states
from gft_jax.ops import divergences, masking
from gft_jax.ops.logprobs import fused_token_loss, target_logprobs
from gft_jax.parallel import sharding
from gft_jax.training import objectives
from gft_jax.training.metrics import (
  Maxima,
  Metrics,
  largest_weight,
  observe,
  sampler_mismatch,
)
from gft_jax.training.objectives import Objective
from gft_jax.training.terms import Term, View, resolved
from gft_jax.types import Array, Model, Params


@dataclasses.dataclass(frozen=True)
class StepSettings:
  """What is static about a training step.

  Attributes:
    objective: a row of objectives.OBJECTIVES.
    loss: its hyper-parameters, resolved: no field is None.
    temperature: of the sampler.
    mini_batches: optimizer updates of a step; divides B.
    micro_batches: parts of a mini-batch; divides B / mini_batches.
  """

  objective: Objective
  loss: LossConfig
  temperature: float = 1.0
  mini_batches: int = 1
  micro_batches: int = 1

  @classmethod
  def of(cls, objective: Objective, config: Config) -> 'StepSettings':
    """From the settings of a stage; a field of its loss may be None."""
    return cls(
      objective,
      objectives.resolve(config.loss, objective),
      config.sampler.temperature,
      config.optimizer.mini_batches,
      config.optimizer.micro_batches,
    )

  @property
  def own_temperature(self) -> float:
    """At which the policy is read: the sampler's where a ratio divides by it."""
    return self.temperature if self.objective.on_policy else 1.0

  @property
  def reads_as_sampled(self) -> bool:
    """Whether the policy is read at the temperature of the sampler."""
    return self.own_temperature == self.temperature

  @property
  def recomputes_behavior(self) -> bool:
    """Whether ratios divide by the policy as the step begins."""
    return self.loss.behavior == 'recomputed'

  @property
  def behaves_as_itself(self) -> bool:
    """Whether that is the policy itself, since a step is one update."""
    return self.recomputes_behavior and self.mini_batches == 1

  @property
  def exact_kl(self) -> bool:
    """Whether the KL to the reference is over the whole vocabulary."""
    return bool(self.loss.kl_weight) and self.loss.kl == objectives.FORWARD


class FixedInputs(NamedTuple):
  """What a loss sees that does not depend on the policy.

  Attributes: those of `terms.View` without `logp`, `entropy` and `step`.
  """

  behavior_logp: Float[Array, 'B G T']
  advantages: Float[Array, 'B G']
  origin: Int[Array, 'B G']
  mask: Bool[Array, 'B G T']
  end: Bool[Array, 'B G T']
  reference_logp: Float[Array, 'B G T'] | None = None
  reference_kl: Float[Array, 'B G T'] | None = None


class MicroBatch(NamedTuple):
  """A part of a mini-batch.

  Attributes:
    batch: its groups.
    advantages: of the whole rollout.
    shares: per term, of `token_shares`.
  """

  batch: GroupBatch
  advantages: Float[Array, 'B G']
  shares: tuple[Float[Array, 'B G T'], ...]


class Measured(NamedTuple):
  """What a micro-batch gives beside its gradient; the sums add over parts.

  Attributes:
    loss: the reported loss.
    summands: per term, without coefficients.
    metrics: WeightedMeans.
  """

  loss: Float[Array, '']
  summands: tuple[Float[Array, ''], ...]
  metrics: Metrics


def loss_of(
  trained: Params,
  micro: MicroBatch,
  reference: Params | None,
  frozen: Params | None,
  step: Int[Array, ''],
  *,
  model: Model,
  settings: StepSettings,
) -> tuple[Float[Array, ''], tuple[Measured, Maxima]]:
  """The loss of a micro-batch, to be differentiated by its first argument.

  Args:
    trained: parameters that are trained.
    micro: groups with advantages and shares.
    reference: parameters of the policy that the stage started from, or None.
    frozen: the other parameters, or None; see models.lora.
    step: updates of the stage that are done.
    model: entrances `prefill`, `respond`, `head` and, for rows, `packed`.
    settings: of the step.

  Returns:
    The number to differentiate, and what is measured. Its value is not that of
    the loss where an objective stops gradients; `Measured.loss` is.
  """
  batch, advantages, shares = sharding.split_prompts(micro)
  hidden, head = response_states(model, lora.join(frozen, trained), batch)
  inputs = fixed_inputs(batch, advantages)
  inputs = with_reference(
    model, settings, reference, batch, inputs, hidden, head
  )

  def head_loss(hidden, head, targets, tokens):
    loss, logp, entropy = fused_token_loss(
      hidden,
      head,
      targets,
      functools.partial(token_losses, settings, step),
      tokens,
      chunk=settings.loss.chunk,
      temperature=settings.own_temperature,
    )
    return loss[None], logp, entropy

  of_tokens = batch.responses.tokens, (_of_each_token(inputs), shares)
  parts, *read = sharding.over_prompts(head_loss, whole=(1,))(
    hidden, head, *packing.gather_trained(batch, of_tokens)
  )
  loss = jnp.sum(parts)
  logp, entropy = packing.scatter_trained(batch, read)
  view = view_of(settings, logp, entropy, inputs, step)
  terms = terms_of(settings, view)
  summands = tuple(
    jnp.sum(share * masking.select(t.values, t.mask))
    for t, share in zip(terms, shares)
  )
  if settings.exact_kl:
    # The one term that is not of the tokens' own log-probabilities.
    loss += resolved(settings.loss.kl_weight) * summands[-1]
  value = sum(
    (t.coefficient * x for t, x in zip(terms, summands)), jnp.float32(0)
  )
  metrics, maxima = measure(settings, jax.lax.stop_gradient(view), batch)
  return loss, (Measured(value, summands, metrics), maxima)


def measure(
  settings: StepSettings, view: View, batch: GroupBatch
) -> tuple[Metrics, Maxima]:
  """The diagnosis of a micro-batch, and what its objective observes."""
  metrics, maxima = observe(view, settings.loss)
  metrics |= settings.objective.observe(view, settings.loss)
  if settings.reads_as_sampled and settings.mini_batches == 1:
    metrics['sampler_mismatch'] = sampler_mismatch(view.logp, batch)
  maxima['max_weight'] = largest_weight(settings.objective, view, settings.loss)
  return metrics, maxima


def token_losses(
  settings: StepSettings,
  step: Int[Array, ''],
  logp: Float[Array, ' n'],
  entropy: Float[Array, ' n'],
  tokens: tuple[FixedInputs, tuple[Float[Array, ' n'], ...]],
) -> Float[Array, ' n']:
  """Losses of n tokens, each as a group of one response of one token.

  Args:
    settings: of the step.
    step: updates that are done.
    logp: of each token.
    entropy: of the policy at each token.
    tokens: what is fixed of each, [n] each, and its shares.
  """
  inputs, shares = tokens
  inputs = _with_a_token_axis(inputs)
  view = view_of(settings, logp[:, None], entropy[:, None], inputs, step)
  losses = (
    t.coefficient * share * masking.select(t.values, t.mask)[:, 0]
    for t, share in zip(terms_of(settings, view), shares)
  )
  return sum(losses, jnp.float32(0))


def token_shares(
  settings: StepSettings, inputs: FixedInputs, step: Int[Array, '']
) -> tuple[tuple[str, ...], tuple[Float[Array, 'B G T'], ...]]:
  """Per term its name, and what each token counts in the whole mini-batch.

  Shares depend on masks only, and every reduction is linear in the values, so
  values times shares add to the loss wherever the batch is cut.

  Args:
    settings: of the step.
    inputs: of the whole mini-batch; the values of a reference are not read.
  """
  nothing = jnp.zeros(inputs.mask.shape, jnp.float32)
  if settings.exact_kl:
    inputs = inputs._replace(reference_kl=nothing)
  elif settings.loss.kl_weight:
    inputs = inputs._replace(reference_logp=nothing)
  terms = terms_of(settings, view_of(settings, nothing, nothing, inputs, step))
  names = tuple(term.name for term in terms)
  return names, tuple(_shares(settings, term) for term in terms)


def _shares(settings: StepSettings, term: Term) -> Float[Array, 'B G T']:
  default = resolved(settings.loss.reduction)
  reduce = masking.REDUCTIONS[term.reduction or default]
  share, weight = jax.grad(
    lambda values: reduce(values, term.mask), has_aux=True
  )(jnp.zeros(term.mask.shape, jnp.float32))
  return share / jnp.where(weight > 0, weight, 1)


def terms_of(settings: StepSettings, view: View) -> tuple[Term, ...]:
  """The summands of the loss, those of its options last."""
  return objectives.with_options(settings.objective, view, settings.loss)


def fixed_inputs(
  batch: GroupBatch, advantages: Float[Array, 'B G']
) -> FixedInputs:
  """What is known of a batch before the policy is asked."""
  mask = batch.token_mask
  return FixedInputs(
    behavior_logp=masking.select(batch.responses.behavior_logp, mask),
    advantages=advantages,
    origin=batch.origin,
    mask=mask,
    end=batch.end_mask,
  )


@jax.named_scope('reference')
def with_reference(
  model: Model,
  settings: StepSettings,
  reference: Params | None,
  batch: GroupBatch,
  inputs: FixedInputs,
  hidden: Float[Array, '*states D'],
  head: Float[Array, 'D V'],
) -> FixedInputs:
  """The inputs with what a KL needs of the policy that the stage started from.

  Raises:
    ValueError: `loss.kl_weight` is set, and there is no reference.
  """
  loss = settings.loss
  if not loss.kl_weight:
    return inputs
  if reference is None:
    raise ValueError('loss.kl_weight needs the parameters of a reference')
  other = jax.lax.stop_gradient(response_states(model, reference, batch))
  if settings.exact_kl:
    compare = functools.partial(divergences.kl_to_reference, chunk=loss.chunk)
    kl = sharding.over_prompts(compare, whole=(1, 3))(*other, hidden, head)
    kl = packing.scatter_trained(batch, kl)
    return inputs._replace(reference_kl=masking.select(kl, inputs.mask))
  read = functools.partial(
    target_logprobs, chunk=loss.chunk, temperature=settings.own_temperature
  )
  targets = packing.gather_trained(batch, batch.responses.tokens)
  logp, _ = sharding.over_prompts(read, whole=(1,))(*other, targets)
  logp = packing.scatter_trained(batch, logp)
  return inputs._replace(reference_logp=masking.select(logp, inputs.mask))


def view_of(
  settings: StepSettings,
  logp: Float[Array, '*group T'],
  entropy: Float[Array, '*group T'],
  inputs: FixedInputs,
  step: Int[Array, ''],
) -> View:
  """What the objective sees: what the policy says, and what is fixed."""
  logp = masking.select(logp, inputs.mask)
  behavior_logp = inputs.behavior_logp
  if settings.behaves_as_itself:
    behavior_logp = jax.lax.stop_gradient(logp)
  return View(
    logp=logp,
    behavior_logp=behavior_logp,
    entropy=masking.select(entropy, inputs.mask),
    advantages=inputs.advantages,
    origin=inputs.origin,
    mask=inputs.mask,
    end=inputs.end,
    step=step,
    reference_logp=inputs.reference_logp,
    reference_kl=inputs.reference_kl,
  )


def _of_each_token(inputs: FixedInputs) -> FixedInputs:
  """[B, G] -> [B, G, T]: each token with what stands for its response."""

  def one(x: Array) -> jax.Array:
    x = x[..., None] if x.ndim == 2 else x
    return jnp.broadcast_to(x, inputs.mask.shape)

  return jax.tree.map(one, inputs)


def _with_a_token_axis(tokens: FixedInputs) -> FixedInputs:
  """n tokens as n responses of one token: [n, 1] what a token has."""

  def one(x: Array) -> Array:
    return x[:, None]

  logp, kl = tokens.reference_logp, tokens.reference_kl
  return FixedInputs(
    behavior_logp=one(tokens.behavior_logp),
    advantages=tokens.advantages,
    origin=tokens.origin,
    mask=one(tokens.mask),
    end=one(tokens.end),
    reference_logp=None if logp is None else one(logp),
    reference_kl=None if kl is None else one(kl),
  )
