"""One training step: log-probabilities, advantages, token losses, update.

Pure and unjitted; engine.py compiles it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from gft_jax import compiler, objectives, packing, parallel
from gft_jax.batch import ORIGINS, SELF, GroupBatch
from gft_jax.config import LossConfig
from gft_jax.models import lora
from gft_jax.models.transformer import response_states
from gft_jax.objectives import Objective, View
from gft_jax.ops import diagnostics, divergences, masking
from gft_jax.ops.logprobs import fused_token_loss, target_logprobs
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
  """Log-probability and entropy at response positions.

  Returns:
    logp and entropy, [B, G, T] float32; 0 at masked positions.
  """
  read = functools.partial(
    target_logprobs, chunk=chunk, temperature=temperature
  )
  targets = packing.listed(batch, batch.responses.tokens)
  logp, entropy = packing.spread(
    batch,
    parallel.over_prompts(read, whole=(1,))(
      *response_states(model, params, batch), targets
    ),
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
) -> Callable[..., tuple[TrainState, Metrics, Maxima]]:
  """Builds `step(state, batch, reference, frozen)`.

  Advantages come from the whole rollout, before the first update. Then one
  optimizer update per mini-batch of whole groups. Inside a mini-batch the
  denominators are those of the whole mini-batch, so the gradients of its
  micro-batches add exactly. (The official code averages micro-batch means
  with equal weight, ZJU-OmniAI/GFT at 763384d, dp_actor.py:621; that is
  another objective wherever lengths differ.)

  Args:
    model: entrances `prefill`, `respond` and `head`, and `packed` for batches
      in rows.
    objective: a row of objectives.OBJECTIVES.
    settings: hyper-parameters of the loss; None is as published.
    temperature: of the sampler; used by on-policy objectives only.
    mini_batches: optimizer updates per call; divides B.
    micro_batches: parts of a mini-batch; divides B / mini_batches.

  Returns:
    A pure function that gives (state, metrics, maxima). `reference` is the
    parameters of the policy that the stage started from; it is read where
    `kl_weight` is not 0, and may be None otherwise. `frozen` is what the model
    needs besides the parameters of the state and of the reference, see
    models.lora; it gets no gradient. Metrics are WeightedMeans; maxima are
    scalars.
  """
  compiler.return_freed_memory()  # before the caller compiles the step
  settings = objectives.resolve(settings, objective)
  tempered = temperature if objective.on_policy else 1.0
  recomputed = settings.behavior == 'recomputed'
  exact = bool(settings.kl_weight) and settings.kl == objectives.FORWARD
  # Whether the policy is evaluated as it was sampled, before any update.
  comparable = tempered == temperature

  @jax.named_scope('reference')
  def refer(reference, batch, hidden, head):
    """What the view holds of the policy that the stage started from."""
    if not settings.kl_weight:
      return {}
    if reference is None:
      raise ValueError('loss.kl_weight needs the parameters of a reference')
    other = jax.lax.stop_gradient(response_states(model, reference, batch))
    if exact:
      compare = functools.partial(
        divergences.kl_to_reference, chunk=settings.chunk
      )
      kl = parallel.over_prompts(compare, whole=(1, 3))(*other, hidden, head)
      kl = packing.spread(batch, kl)
      return {'reference_kl': masking.select(kl, batch.token_mask)}
    read = functools.partial(
      target_logprobs, chunk=settings.chunk, temperature=tempered
    )
    targets = packing.listed(batch, batch.responses.tokens)
    logp, _ = parallel.over_prompts(read, whole=(1,))(*other, targets)
    logp = packing.spread(batch, logp)
    return {'reference_logp': masking.select(logp, batch.token_mask)}

  def view_of(logp, entropy, known):
    """A view from what the policy says and what is known without it."""
    logp = masking.select(logp, known['mask'])
    if recomputed and mini_batches == 1:
      # The policy as the step begins is the policy: the ratio is 1.
      known = known | {'behavior_logp': jax.lax.stop_gradient(logp)}
    entropy = masking.select(entropy, known['mask'])
    return View(logp=logp, entropy=entropy, **known)

  def known_of(batch, advantages, step):
    mask = batch.token_mask
    return {
      'behavior_logp': masking.select(batch.responses.behavior_logp, mask),
      'advantages': advantages,
      'origin': batch.origin,
      'mask': mask,
      'end': batch.end_mask,
      'step': step,
    }

  def terms_of(view):
    return objectives.with_options(objective, view, settings)

  def shares_of(view):
    """Per term, what each token's value counts in the whole mini-batch.

    They depend on masks only, and every reduction is linear in the values, so
    values times shares add to the loss wherever the batch is cut.
    """
    shares = []
    for term in terms_of(view):
      reduce = masking.REDUCTIONS[term.reduction or settings.reduction]
      share, weight = jax.grad(
        lambda values, reduce=reduce, term=term: reduce(values, term.mask),
        has_aux=True,
      )(jnp.zeros(term.mask.shape, jnp.float32))
      shares.append(share / jnp.where(weight > 0, weight, 1))
    return shares

  def token_loss(step, logp, entropy, token):
    """[n] losses of n tokens, each as a group of one response of one token."""
    known, shares = token
    columns = ('behavior_logp', 'mask', 'end', 'reference_logp', 'reference_kl')
    known = {k: v[:, None] if k in columns else v for k, v in known.items()}
    known['step'] = step
    terms = terms_of(view_of(logp[:, None], entropy[:, None], known))
    return sum(
      t.coefficient * share * masking.select(t.values, t.mask)[:, 0]
      for t, share in zip(terms, shares)
    )

  def loss_of(trained, frozen, micro, reference, step):
    batch, advantages, shares = parallel.split_prompts(micro)
    params = lora.join(frozen, trained)
    hidden, head = response_states(model, params, batch)
    referred = refer(reference, batch, hidden, head)
    known = known_of(batch, advantages, step) | referred
    # Each token with what stands for its whole response.
    everywhere = {
      k: jnp.broadcast_to(
        v[..., None] if v.ndim == 2 else v, known['mask'].shape
      )
      for k, v in known.items()
      if k != 'step'
    }

    def head_loss(hidden, head, targets, inputs):
      loss, logp, entropy = fused_token_loss(
        hidden,
        head,
        targets,
        functools.partial(token_loss, step),
        inputs,
        chunk=settings.chunk,
        temperature=tempered,
      )
      return loss[None], logp, entropy

    of_tokens = batch.responses.tokens, (everywhere, shares)
    parts, *read = parallel.over_prompts(head_loss, whole=(1,))(
      hidden, head, *packing.listed(batch, of_tokens)
    )
    loss = jnp.sum(parts)
    logp, entropy = packing.spread(batch, read)
    terms = terms_of(view_of(logp, entropy, known))
    summands = [
      jnp.sum(share * masking.select(t.values, t.mask))
      for t, share in zip(terms, shares)
    ]
    if exact:
      # The one term that is not of the tokens' own log-probabilities.
      loss += settings.kl_weight * summands[-1]
    view = jax.lax.stop_gradient(view_of(logp, entropy, known))
    metrics, maxima = _observe(view, settings)
    metrics |= objective.observe(view, settings)
    if comparable and mini_batches == 1:
      metrics['sampler_mismatch'] = _mismatch(view.logp, batch)
    maxima['max_weight'] = _largest_weight(objective, view, settings)
    value = sum(t.coefficient * x for t, x in zip(terms, summands))
    return loss, ((value, summands, metrics), maxima)

  def update(state, mini, reference, frozen):
    batch, advantages = mini
    nothing = jnp.zeros(batch.token_mask.shape, jnp.float32)
    known = known_of(batch, advantages, state.step)
    if settings.kl_weight:
      known |= {'reference_kl' if exact else 'reference_logp': nothing}
    view = view_of(nothing, nothing, known)
    names = [term.name for term in terms_of(view)]
    gradient_of = jax.grad(loss_of, has_aux=True)
    ((loss, summands, metrics), maxima), grads = _accumulate(
      lambda micro: gradient_of(
        state.params, frozen, micro, reference, state.step
      ),
      (batch, advantages, shares_of(view)),
      micro_batches,
    )
    norm = optax.global_norm(grads)
    with jax.named_scope('optimizer'):
      state = state.apply_gradients(grads=grads)
    named = {'loss': loss, 'grad_norm': norm}
    if len(names) > 1:
      named |= {f'loss_{name}': x for name, x in zip(names, summands)}
    one = jnp.float32(1)
    metrics |= {name: WeightedMean(x, one) for name, x in named.items()}
    return state, (metrics, maxima)

  @jax.named_scope('behavior')
  def remember(params, batch):
    """The batch with log-probabilities of the policy as the step begins.

    Also how far they are from the sampler's.
    """

    def one(part):
      logp, _ = token_logprobs(
        model, params, part, chunk=settings.chunk, temperature=tempered
      )
      return logp

    parts = mini_batches * micro_batches
    logp = join(jax.lax.map(one, split(batch, parts)))
    mismatch = {'sampler_mismatch': _mismatch(logp, batch)}
    responses = batch.responses.replace(behavior_logp=logp)
    return batch.replace(responses=responses), mismatch if comparable else {}

  def step(
    state: TrainState,
    batch: GroupBatch,
    reference: Any = None,
    frozen: Any = None,
  ) -> tuple[TrainState, Metrics, Maxima]:
    with jax.named_scope('group_advantages'):
      advantages = objectives.advantages_of(objective, batch, settings)
    if reference is not None:
      reference = lora.join(frozen, reference)
    mismatch = {}
    if recomputed and mini_batches > 1:
      batch, mismatch = remember(lora.join(frozen, state.params), batch)
    state, (metrics, maxima) = jax.lax.scan(
      lambda state, mini: update(state, mini, reference, frozen),
      state,
      split((batch, advantages), mini_batches),
    )
    metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
    maxima = jax.tree.map(lambda x: jnp.max(x, axis=0), maxima)
    metrics |= mismatch
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


def join(tree: Any) -> Any:
  """The inverse of `split`."""

  def one(x):
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

  return jax.tree.map(one, tree)


def _accumulate(differentiate, mini, micro_batches):
  """Sums what is to be added, and the gradients, over micro-batches.

  `differentiate` gives (gradients, (added, maxima)).

  Returns:
    ((added, maxima), gradients).
  """
  if micro_batches == 1:
    grads, aux = differentiate(mini)
    return aux, grads

  def body(total, micro):
    grads, (added, maxima) = differentiate(micro)
    total_sum, total_max = total
    return (
      jax.tree.map(jnp.add, total_sum, (added, grads)),
      jax.tree.map(jnp.maximum, total_max, maxima),
    ), None

  parts = split(mini, micro_batches)
  first = jax.tree.map(lambda x: x[0], parts)
  grads, (added, maxima) = jax.eval_shape(differentiate, first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (added, grads))
  least = jax.tree.map(lambda s: jnp.full(s.shape, -jnp.inf, s.dtype), maxima)
  ((added, grads), maxima), _ = jax.lax.scan(body, (zeros, least), parts)
  return (added, maxima), grads


@jax.named_scope('diagnosis')
def _observe(view: View, settings: LossConfig) -> tuple[Metrics, Maxima]:
  """The paper's diagnosis of the batch."""
  metrics = {
    'entropy': masking.token_mean(view.entropy, view.mask),
    'rectified_fraction': diagnostics.rectified_fraction(
      view.logp, view.mask, tau=settings.tau
    ),
  }
  for name, origin in ORIGINS.items():
    chosen = view.mask & (view.origin == origin)[..., None]
    metrics[f'logp_{name}'] = masking.token_mean(view.logp, chosen)
  maxima = {
    'max_inverse_probability': diagnostics.largest_inverse_probability(
      view.logp, view.mask
    )
  }
  return metrics, maxima


def _mismatch(logp: jax.Array, batch: GroupBatch) -> WeightedMean:
  """Mean |log p here - log p in the sampler| over the policy's own tokens.

  The sampler and the training step compute one number by two programs; what
  lies between them biases every ratio.
  """
  own = batch.token_mask & (batch.origin == SELF)[..., None]
  return masking.token_mean(jnp.abs(logp - batch.responses.behavior_logp), own)


@jax.named_scope('diagnosis')
def _largest_weight(
  objective: Objective, view: View, settings: LossConfig
) -> jax.Array:
  """Largest |dL/dlog p| / p before reduction: the multiplier of grad p.

  It is 1/p for SFT and C |A| / p, at most max |A| / tau, for GFT (Figure 2).
  """

  def total(logp):
    terms = objective.terms(view._replace(logp=logp), settings)
    return sum(
      jnp.sum(masking.select(t.coefficient * t.values, t.mask)) for t in terms
    )

  slope = jax.grad(total)(view.logp)
  inverse = jnp.exp(jnp.minimum(-view.logp, 80))  # finite, so 0 x it is 0
  return jnp.max(masking.select(jnp.abs(slope) * inverse, view.mask))


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
