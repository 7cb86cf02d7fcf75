"""How far the policy has moved from a reference."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Float

from gft_jax.ops import logprobs, losses
from gft_jax.types import Array

# verl bounds each token's k3 by this; a rare token would dominate the batch.
MAX_K3 = 10.0


def k1(
  logp: Float[Array, '*batch'], reference_logp: Float[Array, '*batch']
) -> Float[Array, '*batch']:
  """log p - log q on a token of the policy: unbiased, any sign.

  Args:
    logp: under the policy p.
    reference_logp: under the reference q.

  Returns:
    An estimate of KL(p || q) in nats; so for its siblings. Read the value,
    beware of the gradient: that of the mean of k1 is 0 in expectation.

  Source: http://joschu.net/blog/kl-approx.html; verl core_algos.py:1146-1181.
  """
  chex.assert_equal_shape([logp, reference_logp])

  return logp - reference_logp


def absolute(
  logp: Float[Array, '*batch'], reference_logp: Float[Array, '*batch']
) -> Float[Array, '*batch']:
  """|log p - log q|; verl's 'abs', an upper bound of k1. As `k1` otherwise."""
  return jnp.abs(k1(logp, reference_logp))


def k2(
  logp: Float[Array, '*batch'], reference_logp: Float[Array, '*batch']
) -> Float[Array, '*batch']:
  """(log p - log q)² / 2; verl's 'mse': biased, positive. As `k1` otherwise."""
  return k1(logp, reference_logp) ** 2 / 2


def k3(
  logp: Float[Array, '*batch'], reference_logp: Float[Array, '*batch']
) -> Float[Array, '*batch']:
  """q/p - log(q/p) - 1; verl's 'low_var_kl': unbiased, positive.

  As `k1` otherwise. Like verl's, the log-ratio is clamped to ±20 and the value
  to 10, so it is biased where the two models disagree wildly.
  """
  log_ratio = jnp.clip(
    -k1(logp, reference_logp), -losses.MAX_LOG_RATIO, losses.MAX_LOG_RATIO
  )
  return jnp.minimum(jnp.exp(log_ratio) - log_ratio - 1, MAX_K3)


ESTIMATORS = {'k1': k1, 'k2': k2, 'k3': k3, 'abs': absolute}


def kl_to_reference(
  hidden: Float[Array, '*batch D'],
  head: Float[Array, 'D V'],
  reference_hidden: Float[Array, '*batch E'],
  reference_head: Float[Array, 'E V'],
  *,
  chunk: int,
) -> Float[Array, '*batch']:
  """Exact KL over the vocabulary: Σ_v p_v (log p_v - log q_v).

  Args:
    hidden: states of the policy p.
    head: of the policy.
    reference_hidden: of the reference q, at the same tokens.
    reference_head: of the reference.
    chunk: tokens whose logits exist at one time.

  Returns:
    Nats per token, float32 (float64 for float64 input). Differentiable; the
    backward pass makes the logits again, chunk by chunk.

  The other direction, KL(q || p), is the same function with the models
  swapped.
  """
  chex.assert_equal_shape_prefix([hidden, reference_hidden], hidden.ndim - 1)
  chex.assert_equal_shape_suffix([head, reference_head], 1)

  @jax.checkpoint
  def body(carry, part):
    hidden, reference_hidden = part
    logp = jax.nn.log_softmax(logprobs.chunk_logits(hidden, head))
    logq = jax.nn.log_softmax(
      logprobs.chunk_logits(reference_hidden, reference_head)
    )
    return carry, (jnp.exp(logp) * (logp - logq)).sum(axis=-1)

  tokens = (hidden, reference_hidden)
  _, kl = logprobs.map_chunks(
    body, None, tokens, ndim=hidden.ndim - 1, chunk=chunk
  )
  return kl
