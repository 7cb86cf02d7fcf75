"""One loss per objective, token by token and not yet reduced.

All see the log-probability of the response tokens; `ops.masking` reduces.
Select before and after: `token_mean(loss(select(logp, mask)), mask)`.
"""

import chex
import jax
import jax.numpy as jnp

from gft_jax.ops import rectification

# exp of it is the largest ratio that a loss or an estimator sees.
MAX_LOG_RATIO = 20.0


def sft_token_loss(logp: chex.Array) -> chex.Array:
  """Supervised fine-tuning: L_t = -log p_t.

  Args:
    logp: [..., T] log-probability of each demonstrated token.

  Returns:
    [..., T].
  """
  return -logp


def dft_token_loss(logp: chex.Array) -> chex.Array:
  """Dynamic fine-tuning: L_t = -sg(p_t) log p_t; dL_t/dp_t = -1.

  Args:
    logp: [..., T] log-probability of each demonstrated token.

  Returns:
    [..., T].

  Source: DFT (arXiv 2508.05629), fsdp_dft_trainer.py:366-441 of
  yongliang-wu/DFT.
  """
  return -jax.lax.stop_gradient(jnp.exp(logp)) * logp


def gft_token_loss(
  logp: chex.Array, advantages: chex.Array, *, tau: float
) -> chex.Array:
  """Group fine-tuning, the paper's loss (Eq. 21), before its sums.

      L_kt = -A_k C(p_kt) log p_kt;  dL_kt/dlog p_kt = -A_k C(p_kt)

  Neither A nor C passes a gradient. There is no ratio, no clip and no
  reference model; given and sampled answers are treated alike.

  Args:
    logp: [..., T], usually [B, G, T], under the un-tempered policy.
    advantages: [...], one per response.
    tau: threshold of `dynamic_coefficient`, p > τ.

  Returns:
    [..., T].

  Source: Eq. 21; core_algos.py:668-712 of ZJU-OmniAI/GFT.
  Deviations: Eq. 6, 17 and 22 print the gradient as A (C/p) ∇log p. The
  gradient of Eq. 21 is A C ∇log p = A (C/p) ∇p. The code implements Eq. 21,
  and so does this.
  """
  chex.assert_shape(advantages, jnp.shape(logp)[:-1])

  coefficient = rectification.dynamic_coefficient(logp, tau=tau)
  return -coefficient * jax.lax.stop_gradient(advantages)[..., None] * logp


def grpo_token_loss(
  logp: chex.Array,
  behavior_logp: chex.Array,
  advantages: chex.Array,
  *,
  clip_low: float,
  clip_high: float,
  dual_clip: float | None = None,
) -> chex.Array:
  """Clipped policy gradient of GRPO.

      r_t = exp(log p_t - log b_t)
      L_t = max(-A r_t, -A clip(r_t, 1 - low, 1 + high))
      L_t = min(L_t, -A c)  where A < 0 and c is given

  The log-ratio is clamped to ±20. c bounds the push away from a token that
  the policy now likes much better than the sampler did.

  Args:
    logp: [..., T] under the policy, at the sampler's temperature.
    behavior_logp: [..., T] under the policy that sampled; no gradient.
    advantages: [...], one per response; no gradient.
    clip_low: how far the ratio may fall below 1.
    clip_high: how far it may rise above 1.
    dual_clip: c, above 1; None has no bound.

  Returns:
    [..., T].

  Source: GRPO (arXiv 2402.03300), dual clip (arXiv 1912.09729); verl
  core_algos.py:714-786 of ZJU-OmniAI/GFT.
  """
  chex.assert_equal_shape([logp, behavior_logp])
  chex.assert_shape(advantages, jnp.shape(logp)[:-1])

  advantages = jax.lax.stop_gradient(advantages)[..., None]
  log_ratio = logp - jax.lax.stop_gradient(behavior_logp)
  ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  loss = jnp.maximum(-advantages * ratio, -advantages * clipped)
  if dual_clip is None:
    return loss
  bounded = jnp.minimum(loss, -advantages * dual_clip)
  return jnp.where(advantages < 0, bounded, loss)
