"""One loss per objective, token by token and not yet reduced.

All see the log-probability of the response tokens; `ops.masking` reduces.
Select before and after: `token_mean(loss(select(logp, mask)), mask)`.

What tells them apart is the multiplier of ∇p, (dL_t/dlog p_t) / p_t, at an
unlikely token: SFT's 1/p has no bound, which is the paper's second flaw.

| loss | -dL_t/dlog p_t | multiplier of ∇p as p → 0 |
|---|---|---|
| SFT | 1 | 1/p |
| DFT | p | 1 |
| GFT | A C(p) | A |
| PSFT | r while r < 1 + high | 1/p_old |
| LUFFY, given tokens | A γ p / (p + γ)² | A / γ |
| CHORD-φ, given tokens | p (1 - p) | 1 |
| GRPO | A r while r is not clipped | A / p_behavior |
"""

import math

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from gft_jax.ops import rectification
from gft_jax.types import Array

# exp of it is the largest ratio that a loss or an estimator sees.
MAX_LOG_RATIO = 20.0


def sft_token_loss(logp: Float[Array, '*batch T']) -> Float[Array, '*batch T']:
  """Supervised fine-tuning: L_t = -log p_t.

  An unlikely token has the same slope by log p as any other, so its p is
  pushed with the weight 1/p, without bound.

  Args:
    logp: log-probability of each demonstrated token.

  Source: verl fsdp_sft_trainer.py:343-447 of yongliang-wu/DFT at e153181.
  """
  return -logp


def preference_loss(
  chosen: Float[Array, '*batch'], rejected: Float[Array, '*batch']
) -> Float[Array, '*batch']:
  """Bradley-Terry: L = -log σ(r⁺ - r⁻), the surprise that r⁺ is preferred.

  Only the difference counts, so scores are known up to a constant per prompt.

  Args:
    chosen: scores r⁺.
    rejected: scores r⁻ of answers to the same prompts.

  Source: Bradley and Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), Eq. 1.
  """
  chex.assert_equal_shape([chosen, rejected])

  return jax.nn.softplus(rejected - chosen)


def dft_token_loss(
  logp: Float[Array, '*batch T'], *, kept: Bool[Array, '*batch T'] | None = None
) -> Float[Array, '*batch T']:
  """Dynamic fine-tuning: L_t = -sg(p_t) log p_t; dL_t/dp_t = -1.

  An unlikely token is pushed with the weight 1, not 1/p: by log p its slope is
  p, so what the policy does not believe it hardly learns.

  Args:
    logp: log-probability of each demonstrated token.
    kept: tokens that keep SFT's slope; see `gft_token_loss`.

  Source: DFT (arXiv 2508.05629), fsdp_dft_trainer.py:366-441 of
  yongliang-wu/DFT at e153181.
  """
  weight = rectification.dynamic_coefficient(logp, tau=1.0)
  return -_keep(weight, kept) * logp


def gft_token_loss(
  logp: Float[Array, '*batch T'],
  advantages: Float[Array, '*batch'],
  *,
  tau: Float[Array, ''] | float,
  kept: Bool[Array, '*batch T'] | None = None,
) -> Float[Array, '*batch T']:
  """Group fine-tuning, the paper's loss (Eq. 21), before its sums.

      L_kt = -A_k C(p_kt) log p_kt;  dL_kt/dlog p_kt = -A_k C(p_kt)

  Neither A nor C passes a gradient. There is no ratio, no clip and no
  reference model; given and sampled answers are treated alike. The weight on
  ∇p is A C/p, A/p above τ and A below, never more than A/τ.

  Args:
    logp: log-probability under the un-tempered policy.
    advantages: one per response.
    tau: threshold of `dynamic_coefficient`, p > τ.
    kept: tokens whose coefficient is 1 whatever their p; None,
      the paper, has none. A remedy for an unlikely stop token, which
      rectification keeps unlikely: the policy then never learns to stop.

  Source: Eq. 21; core_algos.py:668-712 of ZJU-OmniAI/GFT at 763384d.
  Deviations: Eq. 6, 17 and 22 print the gradient as A (C/p) ∇log p. The
  gradient of Eq. 21 is A C ∇log p = A (C/p) ∇p. The code implements Eq. 21,
  and so does this.
  """
  chex.assert_shape(advantages, jnp.shape(logp)[:-1])

  coefficient = _keep(rectification.dynamic_coefficient(logp, tau=tau), kept)
  return -coefficient * jax.lax.stop_gradient(advantages)[..., None] * logp


def psft_token_loss(
  logp: Float[Array, '*batch T'],
  old_logp: Float[Array, '*batch T'],
  *,
  clip_high: float,
) -> Float[Array, '*batch T']:
  """Proximal SFT: L_t = -min(r_t, 1 + high), r_t = p_t / p_old,t.

  PPO's clip with advantage 1 on demonstrations, so its lower bound never
  binds. The slope by log p is -r_t until p has grown by the factor 1 + high
  since the step began, then 0: no token moves far in one step, but the first
  update of a step is SFT's, with the weight 1/p on ∇p.

  Args:
    logp: log-probability of each demonstrated token.
    old_logp: the same under the policy that began the step; no
      gradient.
    clip_high: how far the ratio may rise above 1.

  Source: PSFT (arXiv 2508.17784), core_algos.py:816-890 of zwhong714/PSFT at
  569b1ba, there with advantages 1 and a dual clip that is never reached.
  """
  return -jnp.minimum(_ratio(logp, old_logp), 1 + clip_high)


def luffy_token_loss(
  logp: Float[Array, '*batch T'],
  advantages: Float[Array, '*batch'],
  *,
  shaping: float,
) -> Float[Array, '*batch T']:
  """LUFFY's policy shaping, for tokens that another policy wrote.

      L_t = -A p_t / (p_t + γ);  dL_t/dlog p_t = -A γ p_t / (p_t + γ)²

  p / (p + γ) stands where the ratio to an unknown behaviour policy would. It
  is differentiated, not detached. The weight on ∇p is A γ / (p + γ)²: A / γ
  for an unlikely token, little for a likely one, so what is learned is what
  the policy does not do yet; as by log p the slope is largest at p = γ.

  Args:
    logp: log-probability of each token that another policy wrote.
    advantages: one per response; no gradient.
    shaping: γ, a probability; 0.1 in the paper.

  Source: LUFFY (arXiv 2504.14945); off_policy_reshape=p_div_p_0.1 in
  mix_core_alg.py:69-251 of ElliottYan/LUFFY at 01f4ae0. γ = 0 has no slope;
  their no_reshape, L_t = -A p_t, is `γ L_t` for a γ far above 1.
  """
  chex.assert_shape(advantages, jnp.shape(logp)[:-1])
  chex.assert_scalar_positive(shaping)

  # p / (p + γ), and exact for p = 0.
  shaped = jax.nn.sigmoid(logp - math.log(shaping))
  return -jax.lax.stop_gradient(advantages)[..., None] * shaped


def chord_token_loss(
  logp: Float[Array, '*batch T'],
) -> Float[Array, '*batch T']:
  """CHORD-φ's imitation: L_t = -sg(p_t (1 - p_t)) log p_t.

  φ(p) = p (1 - p) leaves out what is certain already and what the policy
  finds absurd: by log p the slope is φ, at most 1/4, near p for an unlikely
  token (weight 1 - p on ∇p).

  Args:
    logp: log-probability of each demonstrated token.

  Source: CHORD (arXiv 2508.11408), chord_policy_loss.py of
  modelscope/Trinity-RFT at 0414330.
  """
  p = jax.lax.stop_gradient(jnp.exp(logp))
  return -p * (1 - p) * logp


def chord_mu(
  step: Int[Array, '*batch'] | int,
  *,
  peak: float,
  valley: float,
  warmup_steps: int,
  decay_steps: int,
) -> Float[Array, '*batch']:
  """CHORD's weight of imitation against reward, in [0, 1].

      0 -> peak linearly; then valley + (peak - valley) (1 + cos πs/decay) / 2
      for s < decay steps after the warm-up; then valley

  Args:
    step: optimizer updates done.
    peak: µ at the end of the warm-up.
    valley: µ at last.
    warmup_steps: updates of the linear rise.
    decay_steps: updates of the cosine; 0 goes to the valley at once.

  Source: mu_schedule_function, chord_policy_loss.py of modelscope/Trinity-RFT
  at 0414330.
  """
  after = step - warmup_steps
  cosine = (1 + jnp.cos(jnp.pi * after / max(decay_steps, 1))) / 2
  falling = valley + (peak - valley) * cosine
  rising = peak * step / max(warmup_steps, 1)
  mu = jnp.where(after < decay_steps, falling, valley)
  return jnp.where(step < warmup_steps, rising, mu)


def grpo_token_loss(
  logp: Float[Array, '*batch T'],
  behavior_logp: Float[Array, '*batch T'],
  advantages: Float[Array, '*batch'],
  *,
  clip_low: float,
  clip_high: float,
  dual_clip: float | None = None,
) -> Float[Array, '*batch T']:
  """Clipped policy gradient of GRPO.

      r_t = exp(log p_t - log b_t)
      L_t = max(-A r_t, -A clip(r_t, 1 - low, 1 + high))
      L_t = min(L_t, -A c)  where A < 0 and c is given

  The log-ratio is clamped to ±20. c bounds the push away from a token that
  the policy now likes much better than the sampler did. On policy the slope by
  log p is -A whatever p is: an unlikely token that was sampled all the same is
  pushed with the weight A/p on ∇p.

  Args:
    logp: under the policy, at the sampler's temperature.
    behavior_logp: under the policy that sampled; no gradient.
    advantages: one per response; no gradient.
    clip_low: how far the ratio may fall below 1; at least 1 is no bound.
    clip_high: how far it may rise above 1; infinity is no bound.
    dual_clip: c, above 1; None has no bound.

  Source: GRPO (arXiv 2402.03300), dual clip (arXiv 1912.09729); verl
  core_algos.py:714-786 of ZJU-OmniAI/GFT at 763384d.
  """
  chex.assert_shape(advantages, jnp.shape(logp)[:-1])

  advantages = jax.lax.stop_gradient(advantages)[..., None]
  ratio = _ratio(logp, behavior_logp)
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  loss = jnp.maximum(-advantages * ratio, -advantages * clipped)
  if dual_clip is None:
    return loss
  bounded = jnp.minimum(loss, -advantages * dual_clip)
  return jnp.where(advantages < 0, bounded, loss)


def _ratio(
  logp: Float[Array, '*batch T'], old_logp: Float[Array, '*batch T']
) -> Float[Array, '*batch T']:
  """p / p_old with the log-ratio clamped to ±20; no gradient into p_old."""
  chex.assert_equal_shape([logp, old_logp])

  log_ratio = logp - jax.lax.stop_gradient(old_logp)
  return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _keep(
  weight: Float[Array, '*batch T'], kept: Bool[Array, '*batch T'] | None
) -> Float[Array, '*batch T']:
  return weight if kept is None else jnp.where(kept, 1, weight)
