"""The paper's diagnosis of SFT (section 2, appendix A) as numbers.

Rewritten by importance sampling, SFT's gradient is a policy gradient

    ∇L_SFT = -E_{y ~ π} [ 1[y = y*] / π(y) ∇log π(y) ]

with reward 1[y = y*], almost always 0, and weight 1/π(y), without bound.
"""

import chex
import jax.numpy as jnp

from gft_jax.ops import advantages, masking


def implicit_reward(
  tokens: chex.Array,
  length: chex.Array,
  demonstration: chex.Array,
  demonstration_length: chex.Array,
) -> chex.Array:
  """SFT's reward of a response: 1[y = y*].

  Args:
    tokens: [..., T] the policy's answer.
    length: [...] its tokens that are real.
    demonstration: [..., T] the given answer.
    demonstration_length: [...].

  Returns:
    [...] float32, 1 where the two have the same length and the same tokens up
    to it; what lies beyond does not matter.
  """
  chex.assert_equal_shape([tokens, demonstration])
  chex.assert_equal_shape([length, demonstration_length])
  chex.assert_shape(length, jnp.shape(tokens)[:-1])

  positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
  same = (tokens == demonstration) | (positions >= length[..., None])
  return (same.all(axis=-1) & (length == demonstration_length)).astype(
    jnp.float32
  )


def inverse_probability(logp: chex.Array) -> chex.Array:
  """SFT's importance weight of a token: 1 / p = exp(-logp), [...] to [...]."""
  return jnp.exp(-logp)


def largest_inverse_probability(
  logp: chex.Array, mask: chex.Array
) -> chex.Array:
  """Largest 1 / p of the counted tokens.

  Args:
    logp: [...].
    mask: [...], true where a token counts.

  Returns:
    Scalar; 1, the smallest 1 / p there is, for an empty mask.
  """
  return inverse_probability(masking.select(logp, mask)).max(initial=1)


def rectified_fraction(
  logp: chex.Array, mask: chex.Array, *, tau: float
) -> masking.WeightedMean:
  """Share of tokens that `dynamic_coefficient` shrinks: p <= τ.

  Args:
    logp: [..., T].
    mask: [..., T].
    tau: τ, a probability.

  Returns:
    total = number of rectified tokens, weight = number of tokens.
  """
  return masking.token_mean((jnp.exp(logp) <= tau).astype(jnp.float32), mask)


def effective_groups(
  rewards: chex.Array, member_mask: chex.Array
) -> masking.WeightedMean:
  """Share of groups whose rewards differ; the others teach nothing.

  Args:
    rewards: [..., G].
    member_mask: [..., G].

  Returns:
    total = groups with unequal rewards, weight = groups with a member.
  """
  effective = ~advantages.is_flat(rewards, member_mask)
  present = jnp.asarray(member_mask, bool).any(axis=-1)
  return masking.WeightedMean(
    effective.sum(dtype=jnp.float32), present.sum(dtype=jnp.float32)
  )
