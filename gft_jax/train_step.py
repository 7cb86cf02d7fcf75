"""One training step: log-probabilities, advantages, token losses, update.

Pure and unjitted; train.py compiles it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from gft_jax.batch import ORIGINS, GroupBatch
from gft_jax.config import LossConfig
from gft_jax.objectives import Objective, View
from gft_jax.ops import diagnostics, masking
from gft_jax.ops.logprobs import target_logprobs
from gft_jax.ops.masking import WeightedMean

Metrics = dict[str, WeightedMean]
Maxima = dict[str, jax.Array]


def create_state(
  model: Any, params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
  """A Flax train state at step 0 with fresh optimizer state."""
  state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
  return state.replace(step=jnp.int32(0))


def token_logprobs(
  model: Any,
  params: Any,
  batch: GroupBatch,
  *,
  chunk: int,
  temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability and entropy at response positions, prompt run once.

  Returns:
    logp and entropy, [B, G, T] float32; 0 at masked positions.
  """
  variables = {'params': params}
  prefix = model.apply(
    variables, batch.prompts.tokens, batch.prompts.length, method='prefill'
  )
  hidden = model.apply(
    variables, prefix, batch.responses.tokens, method='respond'
  )
  head = model.apply(variables, method='head')
  logp, entropy = target_logprobs(
    hidden, head, batch.responses.tokens, chunk=chunk, temperature=temperature
  )
  mask = batch.token_mask
  return masking.select(logp, mask), masking.select(entropy, mask)


def make_train_step(
  model: Any,
  objective: Objective,
  settings: LossConfig,
  *,
  temperature: float = 1.0,
  mini_batches: int = 1,
  micro_batches: int = 1,
) -> Callable[[TrainState, GroupBatch], tuple[TrainState, Metrics, Maxima]]:
  """Builds `step(state, batch) -> (state, metrics, maxima)`.

  Advantages come from the whole rollout, before the first update. Then one
  optimizer update per mini-batch of whole groups. Inside a mini-batch the
  denominators are those of the whole mini-batch, so the gradients of its
  micro-batches add exactly. (The official code averages micro-batch means
  with equal weight, ZJU-OmniAI/GFT at 763384d, dp_actor.py:621; that is
  another objective wherever lengths differ.)

  Args:
    model: entrances `prefill`, `respond` and `head`.
    objective: a row of objectives.OBJECTIVES.
    settings: hyper-parameters of the loss.
    temperature: of the sampler; used by tempered objectives only.
    mini_batches: optimizer updates per call; divides B.
    micro_batches: parts of a mini-batch; divides B / mini_batches.

  Returns:
    A pure function. Metrics are WeightedMeans; maxima are scalars.
  """
  reduce = masking.REDUCTIONS[settings.reduction]
  tempered = temperature if objective.tempered else 1.0

  def terms_of(logp, batch, advantages):
    mask = batch.token_mask
    view = View(
      logp=logp,
      behavior_logp=masking.select(batch.responses.behavior_logp, mask),
      advantages=advantages,
      origin=batch.origin,
      mask=mask,
    )
    return objective.terms(view, settings)

  def reduced(logp, batch, advantages):
    return [
      (t.coefficient, reduce(t.values, t.mask))
      for t in terms_of(logp, batch, advantages)
    ]

  def loss_of(params, micro, weights):
    batch, advantages = micro
    logp, entropy = token_logprobs(
      model, params, batch, chunk=settings.chunk, temperature=tempered
    )
    terms = reduced(logp, batch, advantages)
    loss = sum(
      coefficient * WeightedMean(part.total, weight).value
      for (coefficient, part), weight in zip(terms, weights)
    )
    logp, entropy = jax.lax.stop_gradient((logp, entropy))
    metrics, maxima = _observe(logp, entropy, batch, settings)
    # |dL/dlog p| / p before reduction: the multiplier of grad p. It is 1/p
    # for SFT and C |A| / p, at most max |A| / tau, for GFT (Figure 2).
    slope = jax.grad(
      lambda logp: sum(
        jnp.sum(masking.select(t.coefficient * t.values, t.mask))
        for t in terms_of(logp, batch, advantages)
      )
    )(logp)
    inverse = jnp.exp(jnp.minimum(-logp, 80))  # finite, so 0 x it is 0
    weight = masking.select(jnp.abs(slope) * inverse, batch.token_mask)
    maxima['max_weight'] = jnp.max(weight)
    return loss, (metrics, maxima)

  def update(state, mini):
    batch, advantages = mini
    # Denominators depend on masks only: no forward pass is run for them.
    nothing = jnp.zeros(batch.token_mask.shape, jnp.float32)
    weights = [part.weight for _, part in reduced(nothing, batch, advantages)]
    differentiate = jax.value_and_grad(loss_of, has_aux=True)
    loss, (metrics, maxima), grads = _accumulate(
      lambda micro: differentiate(state.params, micro, weights),
      mini,
      micro_batches,
    )
    norm = optax.global_norm(grads)
    state = state.apply_gradients(grads=grads)
    one = jnp.float32(1)
    metrics['loss'] = WeightedMean(loss, one)
    metrics['grad_norm'] = WeightedMean(norm, one)
    return state, (metrics, maxima)

  def step(state: TrainState, batch: GroupBatch):
    with jax.named_scope('group_advantages'):
      if objective.advantages is None:
        advantages = jnp.zeros_like(batch.rewards)
      else:
        advantages = objective.advantages(
          batch.rewards, batch.member_mask, settings
        )
    parts = split((batch, advantages), mini_batches)
    state, (metrics, maxima) = jax.lax.scan(update, state, parts)
    metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
    maxima = jax.tree.map(lambda x: jnp.max(x, axis=0), maxima)
    scored = objective.advantages is not None
    return state, metrics | _describe(batch, scored=scored), maxima

  return step


def split(tree: Any, parts: int) -> Any:
  """[B, ...] leaves -> [parts, B / parts, ...].

  Row b goes to part b % parts: with B sharded over devices every part is
  spread over all of them and no row moves.
  """

  def one(x):
    return jnp.swapaxes(
      x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1
    )

  return jax.tree.map(one, tree)


def _accumulate(differentiate, mini, micro_batches):
  """Sums loss, metrics and gradients over micro-batches."""
  if micro_batches == 1:
    (loss, (metrics, maxima)), grads = differentiate(mini)
    return loss, (metrics, maxima), grads

  def body(total, micro):
    (loss, (metrics, maxima)), grads = differentiate(micro)
    total_sum, total_max = total
    return (
      jax.tree.map(jnp.add, total_sum, (loss, metrics, grads)),
      jax.tree.map(jnp.maximum, total_max, maxima),
    ), None

  parts = split(mini, micro_batches)
  first = jax.tree.map(lambda x: x[0], parts)
  (loss, (metrics, maxima)), grads = jax.eval_shape(differentiate, first)
  zeros = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype), (loss, metrics, grads)
  )
  least = jax.tree.map(lambda s: jnp.full(s.shape, -jnp.inf, s.dtype), maxima)
  ((loss, metrics, grads), maxima), _ = jax.lax.scan(
    body, (zeros, least), parts
  )
  return loss, (metrics, maxima), grads


def _observe(
  logp, entropy, batch: GroupBatch, settings: LossConfig
) -> tuple[Metrics, Maxima]:
  """The paper's diagnosis of the batch."""
  mask = batch.token_mask
  metrics = {
    'entropy': masking.token_mean(entropy, mask),
    'rectified_fraction': diagnostics.rectified_fraction(
      logp, mask, tau=settings.tau
    ),
  }
  for name, origin in ORIGINS.items():
    chosen = mask & (batch.origin == origin)[..., None]
    metrics[f'logp_{name}'] = masking.token_mean(logp, chosen)
  maxima = {
    'max_inverse_probability': diagnostics.largest_inverse_probability(
      logp, mask
    )
  }
  return metrics, maxima


def _describe(batch: GroupBatch, *, scored: bool) -> Metrics:
  """Lengths, and with `scored` rewards, by origin of the answers."""
  lengths = batch.responses.length.astype(jnp.float32)
  metrics = {}
  for name, origin in ORIGINS.items():
    members = batch.member_mask & (batch.origin == origin)
    metrics[f'response_length_{name}'] = masking.token_mean(lengths, members)
    if scored:
      metrics[f'reward_{name}'] = masking.token_mean(batch.rewards, members)
  if scored:
    metrics['reward'] = masking.token_mean(batch.rewards, batch.member_mask)
    total, weight = diagnostics.effective_groups(
      batch.rewards, batch.member_mask
    )
    metrics['zero_variance_groups'] = WeightedMean(weight - total, weight)
  return metrics
