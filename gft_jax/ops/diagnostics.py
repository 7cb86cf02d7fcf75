"""The paper's diagnosis of SFT (section 2, appendix A) as numbers.

Rewritten by importance sampling, SFT's gradient is a policy gradient

    ∇L_SFT = -E_{y ~ π} [ 1[y = y*] / π(y) ∇log π(y) ]

with reward 1[y = y*], almost always 0, and weight 1/π(y), without bound.
"""

import math

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Real, Shaped

from gft_jax.ops import advantages, logprobs, losses, masking
from gft_jax.types import Array


def implicit_reward(
  tokens: Int[Array, '*batch T'],
  length: Int[Array, '*batch'],
  demonstration: Int[Array, '*batch T'],
  demonstration_length: Int[Array, '*batch'],
) -> Float[Array, '*batch']:
  """SFT's reward of a response: 1[y = y*].

  Args:
    tokens: the policy's answer.
    length: its tokens that are real.
    demonstration: the given answer.
    demonstration_length: its tokens that are real.

  Returns:
    float32, 1 where the two have the same length and the same tokens up to it;
    what lies beyond does not matter.
  """
  chex.assert_equal_shape([tokens, demonstration])
  chex.assert_equal_shape([length, demonstration_length])
  chex.assert_shape(length, jnp.shape(tokens)[:-1])

  positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
  same = (tokens == demonstration) | (positions >= length[..., None])
  return (same.all(axis=-1) & (length == demonstration_length)).astype(
    jnp.float32
  )


def inverse_probability(logp: Float[Array, '*batch']) -> Float[Array, '*batch']:
  """SFT's importance weight of a token: 1 / p = exp(-logp).

  Cut at e^80, where float32 still has numbers: 0 times it stays 0.
  """
  return jnp.exp(jnp.minimum(-logp, 80))


def largest_inverse_probability(
  logp: Float[Array, '*batch'], mask: Shaped[Array, '*batch']
) -> Float[Array, '']:
  """Largest 1 / p of the counted tokens.

  Args:
    logp: log p of each token.
    mask: true, or not 0, where a token counts.

  Returns:
    1, the smallest 1 / p there is, for an empty mask.
  """
  return inverse_probability(masking.select(logp, mask)).max(initial=1)


def rectified_fraction(
  logp: Float[Array, '*batch T'], mask: Shaped[Array, '*batch T'], *, tau: float
) -> masking.WeightedMean:
  """Share of tokens that `dynamic_coefficient` shrinks: p <= τ.

  Args:
    logp: log p of each token.
    mask: true, or not 0, where a token counts.
    tau: τ, a probability.

  Returns:
    total = number of rectified tokens, weight = number of tokens.
  """
  return masking.token_mean((jnp.exp(logp) <= tau).astype(jnp.float32), mask)


def is_clipped(
  logp: Float[Array, '*batch T'],
  behavior_logp: Float[Array, '*batch T'],
  advantages: Float[Array, '*batch'],
  *,
  clip_low: float,
  clip_high: float,
  dual_clip: float | None = None,
) -> Float[Array, '*batch T']:
  """Tokens to which `losses.grpo_token_loss` gives no gradient.

  Args:
    logp: as in the loss; so the others.
    behavior_logp:
    advantages:
    clip_low:
    clip_high:
    dual_clip:

  Returns:
    float32: 1 where the ratio has left the clip; 0 where it has not, and where
    the advantage is 0.
  """
  slope = jax.grad(
    lambda l: losses.grpo_token_loss(
      l,
      behavior_logp,
      advantages,
      clip_low=clip_low,
      clip_high=clip_high,
      dual_clip=dual_clip,
    ).sum()
  )(logp)
  return ((slope == 0) & (advantages != 0)[..., None]).astype(jnp.float32)


def token_gradients(
  hidden: Float[Array, '*batch D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, '*batch'],
  *,
  chunk: int,
) -> tuple[Float[Array, '*batch'], Int[Array, '*batch']]:
  """How hard imitation pulls at each token, and what stood there instead.

      ‖∂(-log p_t) / ∂h_t‖ = ‖W (p - onehot)‖

  h is the state that predicts the token and W the head: this is the gradient
  that SFT sends into the network at that token. Times the dynamic coefficient
  it is DFT's or, with its advantage, GFT's.

  Args:
    hidden: the states that predict the tokens.
    head: W.
    targets: in [0, V).
    chunk: tokens whose logits exist at one time.

  Returns:
    (norm, float32; the likeliest token, int32).
  """

  def body(carry, part):
    hidden, targets = part
    logits = logprobs.chunk_logits(hidden, head)
    onehot = jax.nn.one_hot(targets, head.shape[-1], dtype=logits.dtype)
    pull = jnp.dot(jax.nn.softmax(logits) - onehot, head.T)
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return carry, (jnp.linalg.norm(pull, axis=-1), likeliest)

  _, results = logprobs.map_chunks(
    body, None, (hidden, targets), ndim=targets.ndim, chunk=chunk
  )
  return results


def top_share(values: Float[Array, ' n'], *, share: float) -> Float[Array, '']:
  """What the largest values have of the sum of all.

  Args:
    values: not negative.
    share: of the n values that count as the largest, in (0, 1]; at least one
      value does.

  Returns:
    In [0, 1]; 0 where all are 0.
  """
  chex.assert_rank(values, 1)

  count = max(1, math.ceil(share * values.size))
  largest = jax.lax.top_k(values, count)[0].sum()
  return masking.WeightedMean(largest, values.sum()).value


def effective_groups(
  rewards: Real[Array, '*batch G'], member_mask: Shaped[Array, '*batch G']
) -> masking.WeightedMean:
  """Share of groups whose rewards differ; the others teach nothing.

  Args:
    rewards: entries under the mask are not read.
    member_mask: true, or not 0, where the group has a member.
  Returns:
    total = groups with unequal rewards, weight = groups with a member.
  """
  effective = ~advantages.is_flat(rewards, member_mask)
  present = jnp.asarray(member_mask, bool).any(axis=-1)
  return masking.WeightedMean(
    effective.sum(dtype=jnp.float32), present.sum(dtype=jnp.float32)
  )
