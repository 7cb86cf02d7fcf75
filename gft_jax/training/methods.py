"""The loss of each method, as a function of what it sees of a batch.

Each docstring says where the method was published, with which values, and what
its gradient does to an unlikely token. The formula of a token stands in
ops/losses.py, that of an advantage in ops/advantages.py.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from gft_jax.batch import SELF
from gft_jax.config import LossConfig
from gft_jax.ops import advantages, diagnostics, divergences, losses, masking
from gft_jax.ops.masking import WeightedMean
from gft_jax.training.terms import Term, View, resolved
from gft_jax.types import Array


def sft(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """Supervised fine-tuning: L = -mean_t log p_t of given answers.

  SFT(mix) is the same with teacher answers in the groups (group.teachers).

  Source: verl fsdp_sft_trainer.py:343-447 of yongliang-wu/DFT at e153181.
  Published: AdamW at 5e-5, batch 256 (DFT's README command).
  Unlikely token: pushed with the weight 1/p on ∇p, without bound.
  """
  del settings
  return (Term(losses.sft_token_loss(view.logp), view.mask),)


def dft(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """Dynamic fine-tuning: L = -mean_t sg(p_t) log p_t of given answers.

  Source: arXiv 2508.05629; fsdp_dft_trainer.py:366-441 of yongliang-wu/DFT at
  e153181.
  Published: AdamW at 5e-5, batch 256 (its README command).
  Unlikely token: weight 1 on ∇p, a slope of p by log p. An unlikely EOS stays
  unlikely; see `loss.rectify_end`.
  """
  values = losses.dft_token_loss(view.logp, kept=view.kept(settings))
  return (Term(values, view.mask),)


def asft(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """Anchored SFT: DFT + λ KL(start || policy), exact over the vocabulary.

      L = mean_t [ -sg(p_t) log p_t + λ Σ_v q_v (log q_v - log p_v) ]

  q is the policy that the stage starts from, frozen. The KL is the optional
  term of `with_options`, which this row asks for.

  Source: arXiv 2509.23753; train_v2.py:93-181 of zhuchichi56/ASFT at 6f6f51c.
  Published: λ = 0.1 in code and script (0.05 in the README's command), AdamW at
  2e-5, batch 64.
  Unlikely token: as DFT, and λ (p - q) by its logit pulls it back to q.
  """
  return dft(view, settings)


def psft(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """Proximal SFT: L = -mean_t min(r_t, 1 + high), r_t = p_t / p_old,t.

  p_old is the policy as the step begins, recomputed where a step has several
  updates (optimizer.mini_batches); with one update r = 1, and it is SFT.

  Source: arXiv 2508.17784; core_algos.py:816-890 of zwhong714/PSFT at 569b1ba.
  Published: high 0.28, 64 demonstrations in 8 updates a step, AdamW at 1e-6.
  Unlikely token: 1/p on ∇p in the first update, none once p has grown by the
  factor 1 + high within the step.
  """
  values = losses.psft_token_loss(
    view.logp, view.behavior_logp, clip_high=resolved(settings.clip_high)
  )
  return (Term(values, view.mask),)


def grpo(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """Group relative policy optimization: PPO's clip, advantages of Eq. 4.

      L = mean_t max(-A r_t, -A clip(r_t, 1 - low, 1 + high)), dual clip c

  Source: arXiv 2402.03300; verl core_algos.py:714-786 of ZJU-OmniAI/GFT at
  763384d. Its paper averages each response first (loss.reduction=sequence_mean)
  and adds k3 at 0.04 (loss.kl_weight).
  Published: low = high = 0.2, c = 3, token mean, no KL (the defaults of verl).
  Unlikely token: A/p_behavior on ∇p, however unlikely it was; a negative
  advantage makes it still less likely.
  """
  values = losses.grpo_token_loss(
    view.logp,
    view.behavior_logp,
    view.advantages,
    clip_low=resolved(settings.clip_low),
    clip_high=resolved(settings.clip_high),
    dual_clip=settings.dual_clip or None,
  )
  return (Term(values, view.mask),)


def dr_grpo(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """Dr. GRPO: GRPO without its two divisions.

      L = Σ_rows Σ_t L_t / (T rows), A_k = r_k - mean(r)

  Neither the length of a response nor the spread of its group's rewards
  scales its gradient.

  Source: arXiv 2503.20783; TRL grpo_trainer.py:2991-3150 (dr_grpo) of
  huggingface/trl at f2cd577. The verl in ZJU-OmniAI/GFT divides by T, not by
  rows: loss.reduction=length_sum.
  Published: low = high = 0.2, no dual clip, no KL.
  Unlikely token: as GRPO.
  """
  return grpo(view, settings)


def dapo(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """DAPO: GRPO with clip-higher, dynamic sampling and an overlong penalty.

  Groups whose rewards are all equal are replaced by further rollouts
  (group.refills), and an answer in the last share of max_response loses up to
  the penalty of its reward, before the advantage is taken.

  Source: arXiv 2503.14476; recipe/dapo/run_dapo_qwen2.5_32b.sh of
  ZJU-OmniAI/GFT at 763384d.
  Published: low 0.2, high 0.28, c = 10, token mean, no KL, penalty 1 over the
  last 4,096 of 20,480 tokens (a share of 0.2), at most 10 rollouts a step.
  Deviation: where the last refill leaves flat groups they stay, with advantages
  0 unless the overlong penalty tells their answers apart; the recipe stops with
  an error.
  Unlikely token: as GRPO, and it may grow by the factor 1.28 in a step, not 1.2.
  """
  return grpo(view, settings)


def rloo(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """REINFORCE leave-one-out: A_k = r_k - mean of the others, PPO's clip.

  Source: arXiv 2402.14740; verl core_algos.py:405-454 of ZJU-OmniAI/GFT at
  763384d. TRL clips one ratio per sequence instead of one per token; with one
  update per rollout both are 1.
  Published: low = high = 0.2; verl's example takes k1 at 0.001 off the reward
  (loss.kl_weight adds a KL to the loss instead).
  Unlikely token: as GRPO.
  """
  return grpo(view, settings)


def grpo_sft(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """LUFFY's second baseline: reward on own answers, imitation on given ones.

      L = Σ_own -A r_t / T - w mean_given log p_t

  A is centred on the mean of the own answers alone.

  Source: arXiv 2504.14945; mix_actor.py:112-142 and grpo_split,
  mix_core_alg.py:12-67, of ElliottYan/LUFFY at 01f4ae0.
  Published: w = 1 (sft_loss_coef), no clip, sum over T.
  Unlikely token: a given one as SFT, an own one as GRPO.
  """
  imitation = losses.sft_token_loss(view.logp)
  return (
    _own(view, settings),
    Term(imitation, view.given, settings.sft_weight, 'token_mean', 'sft'),
  )


def luffy(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """LUFFY: own answers by their ratio, given ones by p / (p + γ).

      L = (Σ_own -A r_t + Σ_given -A p_t / (p_t + γ)) / T

  A = r - mean(r) over the whole group. A sum over T, not a mean over rows, as
  in the code: under Adam the scale shows in the gradient clip alone.

  Source: arXiv 2504.14945; mix_core_alg.py:69-251 and exp_scripts/train.sh of
  ElliottYan/LUFFY at 01f4ae0.
  Published: γ 0.1, no clip, entropy bonus 0.001, 1 trace + 7 own answers, AdamW
  at 1e-6, 128 prompts in 2 updates.
  Unlikely token: a given one A/γ on ∇p, as by log p a slope that is largest at
  p = γ; an own one as GRPO.
  """
  shaped = losses.luffy_token_loss(
    view.logp, view.advantages, shaping=settings.shaping
  )
  own = _own(view, settings)
  values = jnp.where(view.own, own.values, shaped)
  return (Term(values, view.mask),)


def chord_mu(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """CHORD-µ: (1 - µ) GRPO of own answers + µ SFT of given ones.

      µ = losses.chord_mu(updates done)

  The advantages are those of the own answers alone.

  Source: arXiv 2508.11408; chord_policy_loss.py of modelscope/Trinity-RFT at
  0414330.
  Published: µ from 0.9 to 0.05 over 200 steps, no warm-up, clip 0.2, c = 3, one
  expert row in five.
  Deviations: the experts answer the prompts of the rollouts, not others; each
  mean is over the whole mini-batch, as in the code with dynamic batches.
  Unlikely token: a given one µ/p on ∇p, an own one as GRPO.
  """
  return _chord(view, settings, losses.sft_token_loss(view.logp))


def chord_phi(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """CHORD-φ: as CHORD-µ, with φ(p) = p (1 - p) on each given token.

  Source: as `chord_mu`.
  Published: µ = 0.1 throughout.
  Unlikely token: a given one µ on ∇p, an own one as GRPO.
  """
  return _chord(view, settings, losses.chord_token_loss(view.logp))


def gft(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """Group fine-tuning, the paper: L = -mean_kt A_k C(p_kt) log p_kt (Eq. 21).

  "No mix" is the same without teachers (group.teachers=0).

  Source: arXiv 2604.14258; core_algos.py:668-712 of ZJU-OmniAI/GFT at 763384d.
  Published: τ = 0.7 (the paper's best; 0.1 and 0.5 in the scripts), groups of
  1 + 3 + 4, AdamW at 1e-6, 128 prompts in 4 updates.
  Unlikely token: A on ∇p, a slope of A p by log p; A/p above τ.
  """
  values = losses.gft_token_loss(
    view.logp, view.advantages, tau=settings.tau, kept=view.kept(settings)
  )
  return (Term(values, view.mask),)


def gft_no_dcr(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """The paper's ablation without dynamic coefficients: L = -mean A log p.

  Source: Table 2 of arXiv 2604.14258; GFT at τ = 0.
  Published: as `gft`.
  Unlikely token: A/p on ∇p, without bound.
  """
  del settings
  values = losses.gft_token_loss(view.logp, view.advantages, tau=0.0)
  return (Term(values, view.mask),)


def gft_no_gal(view: View, settings: LossConfig) -> tuple[Term, ...]:
  """The paper's ablation without group advantages: L = -mean C(p) log p.

  Given answers alone, each with advantage 1. Without both it is `sft`.

  Source: Table 2 of arXiv 2604.14258; how it was run is not published.
  Published: nothing else.
  Unlikely token: 1 on ∇p; 1/p above τ.
  """
  ones = jnp.ones_like(view.advantages)
  return gft(view._replace(advantages=ones), settings)


def _own(view: View, settings: LossConfig) -> Term:
  """GRPO on the policy's own answers alone."""
  (term,) = grpo(view, settings)
  return term._replace(mask=view.own)


def _chord(
  view: View, settings: LossConfig, imitation: Float[Array, '*group T']
) -> tuple[Term, ...]:
  mu = _mu(view, settings)
  return (
    _own(view, settings)._replace(coefficient=1 - mu),
    Term(imitation, view.given, mu, name='sft'),
  )


def _mu(view: View, settings: LossConfig) -> Float[Array, '']:
  return losses.chord_mu(
    view.step,
    peak=resolved(settings.mu_peak),
    valley=resolved(settings.mu_valley),
    warmup_steps=resolved(settings.mu_warmup_steps),
    decay_steps=resolved(settings.mu_decay_steps),
  )


def normalized(
  rewards: Float[Array, 'B G'],
  member_mask: Bool[Array, 'B G'],
  own: Bool[Array, 'B G'],
  settings: LossConfig,
) -> Float[Array, 'B G']:
  """Eq. 4 over the whole group."""
  del own
  return advantages.group_normalized(
    rewards, member_mask, epsilon=settings.epsilon
  )


def own_normalized(
  rewards: Float[Array, 'B G'],
  member_mask: Bool[Array, 'B G'],
  own: Bool[Array, 'B G'],
  settings: LossConfig,
) -> Float[Array, 'B G']:
  """Eq. 4 over the own answers alone."""
  return normalized(rewards, member_mask & own, own, settings)


def centred(
  rewards: Float[Array, 'B G'],
  member_mask: Bool[Array, 'B G'],
  own: Bool[Array, 'B G'],
  settings: LossConfig,
) -> Float[Array, 'B G']:
  """Rewards less the mean of the group."""
  del own, settings
  return advantages.mean_centred(rewards, member_mask)


def own_centred(
  rewards: Float[Array, 'B G'],
  member_mask: Bool[Array, 'B G'],
  own: Bool[Array, 'B G'],
  settings: LossConfig,
) -> Float[Array, 'B G']:
  """Rewards less the mean of the own answers."""
  del settings
  return advantages.mean_centred(rewards, member_mask, baseline_mask=own)


def leave_one_out(
  rewards: Float[Array, 'B G'],
  member_mask: Bool[Array, 'B G'],
  own: Bool[Array, 'B G'],
  settings: LossConfig,
) -> Float[Array, 'B G']:
  """Rewards less the mean of the others."""
  del own, settings
  return advantages.leave_one_out(rewards, member_mask)


def observe_ratio(view: View, settings: LossConfig) -> dict[str, WeightedMean]:
  """How far the policy has left the one that sampled, and what that cuts."""
  clipped = diagnostics.is_clipped(
    view.logp,
    view.behavior_logp,
    view.advantages,
    clip_low=resolved(settings.clip_low),
    clip_high=resolved(settings.clip_high),
    dual_clip=settings.dual_clip or None,
  )
  return {
    'clipped_fraction': masking.token_mean(clipped, view.own),
    'behavior_kl': masking.token_mean(
      divergences.k1(view.behavior_logp, view.logp), view.own
    ),
  }


def observe_psft(view: View, settings: LossConfig) -> dict[str, WeightedMean]:
  everything = view._replace(
    advantages=jnp.ones_like(view.advantages),
    origin=jnp.full_like(view.origin, SELF),
  )
  return observe_ratio(everything, settings)


def observe_luffy(view: View, settings: LossConfig) -> dict[str, WeightedMean]:
  shaped = losses.luffy_token_loss(
    view.logp, -jnp.ones_like(view.advantages), shaping=settings.shaping
  )
  return observe_ratio(view, settings) | {
    'shaped_ratio': masking.token_mean(shaped, view.given)
  }


def observe_chord(view: View, settings: LossConfig) -> dict[str, WeightedMean]:
  one = jnp.float32(1)
  mu = WeightedMean(one * _mu(view, settings), one)
  return observe_ratio(view, settings) | {'mu': mu}
