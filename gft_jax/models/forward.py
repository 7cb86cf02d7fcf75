"""Model, parameters and batch -> log-probabilities, entropy, drift. Pure.

A model is known by its entrances (see models.transformer), so a table of known
probabilities is one too. Logits exist for `chunk` tokens at a time.
"""

import functools

from jaxtyping import Float, Int

from gft_jax.batch import GroupBatch
from gft_jax.models import packing
from gft_jax.ops import diagnostics, divergences, masking
from gft_jax.ops.logprobs import target_logprobs
from gft_jax.ops.masking import WeightedMean
from gft_jax.parallel import sharding
from gft_jax.types import Array, Model, Params


def drift(
  model: Model, params: Params, base: Params, batch: GroupBatch, *, chunk: int
) -> dict[str, WeightedMean]:
  """How far the policy moved from `base`, on its own samples. Pure.

  Args:
    model: entrances `prefill`, `respond` and `head`.
    params: the policy that sampled `batch` at temperature 1.
    base: parameters of the policy that the first stage started from.
    batch: own samples; rewards are not used.
    chunk: tokens whose logits exist at one time.

  Returns:
    entropy: mean entropy of the policy per token, nats.
    kl_to_base: KL(policy || base) per token, exact over the vocabulary, nats.
    kl_to_base_per_response: the same summed over each response.
  """
  mask = batch.token_mask

  def compare(hidden, head, other, other_head, tokens):
    _, entropy = target_logprobs(hidden, head, tokens, chunk=chunk)
    kl = divergences.kl_to_reference(
      hidden, head, other, other_head, chunk=chunk
    )
    return entropy, kl

  entropy, kl = sharding.over_prompts(compare, whole=(1, 3))(
    *response_states(model, params, batch),
    *response_states(model, base, batch),
    batch.responses.tokens,
  )
  return {
    'entropy': masking.token_mean(entropy, mask),
    'kl_to_base': masking.token_mean(kl, mask),
    'kl_to_base_per_response': masking.token_sum(kl, mask),
  }


def demonstration_tokens(
  model: Model, params: Params, batch: GroupBatch, *, chunk: int
) -> dict[str, Float[Array, 'B G T'] | Int[Array, 'B G T']]:
  """What the policy makes of the tokens of given answers. Pure.

  Args:
    model: entrances `prefill`, `respond` and `head`.
    params: the policy.
    batch: given answers; rewards are not used.
    chunk: tokens whose logits exist at one time.

  Returns:
    `logp`; `gradient`, the norm of `token_gradients`; and `likeliest`, the
    token that the policy would have written.
  """

  def read(hidden, head, tokens):
    logp, _ = target_logprobs(hidden, head, tokens, chunk=chunk)
    gradient, likeliest = diagnostics.token_gradients(
      hidden, head, tokens, chunk=chunk
    )
    return {'logp': logp, 'gradient': gradient, 'likeliest': likeliest}

  return sharding.over_prompts(read, whole=(1,))(
    *response_states(model, params, batch), batch.responses.tokens
  )


def response_states(
  model: Model, params: Params, batch: GroupBatch
) -> tuple[Float[Array, 'B *listed D'], Float[Array, 'D V']]:
  """What predicts the response tokens, through the entrances that a batch asks.

  Args:
    model: entrances `prefill`, `respond` and `head`, or `packed` and `head` for
      a batch in rows.
    params: its parameters.
    batch: B prompts with G responses of T tokens.

  Returns:
    hidden states [B, G, T, D], or [B, A, D] of a packed batch, and head [D, V],
    for `ops.logprobs`.
  """
  apply = functools.partial(model.apply, {'params': params})
  rows = batch.packing and batch.packing.rows
  if rows:
    hidden = apply(rows.tokens, rows.positions, rows.segments, method='packed')
  else:
    prompts = batch.prompts
    prefix = apply(prompts.tokens, prompts.length, method='prefill')
    hidden = apply(prefix, batch.responses.tokens, method='respond')
  return packing.trained_states(batch, hidden), apply(method='head')


def token_logprobs(
  model: Model,
  params: Params,
  batch: GroupBatch,
  *,
  chunk: int,
  temperature: float = 1.0,
) -> tuple[Float[Array, 'B G T'], Float[Array, 'B G T']]:
  """Log-probability and entropy at response positions.

  Returns:
    logp and entropy, float32; 0 at masked positions.
  """
  read = functools.partial(
    target_logprobs, chunk=chunk, temperature=temperature
  )
  targets = packing.gather_trained(batch, batch.responses.tokens)
  logp, entropy = packing.scatter_trained(
    batch,
    sharding.over_prompts(read, whole=(1,))(
      *response_states(model, params, batch), targets
    ),
  )
  mask = batch.token_mask
  return masking.select(logp, mask), masking.select(entropy, mask)
