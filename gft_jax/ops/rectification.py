"""Dynamic coefficient rectification (Eq. 5)."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gft_jax.types import Array


@jax.named_scope('dynamic_coefficient')
def dynamic_coefficient(
  logp: Float[Array, '*batch'], *, tau: Float[Array, ''] | float
) -> Float[Array, '*batch']:
  """How much of a token's imitation gradient is kept.

      C(p) = 1 where p > τ, sg(p) elsewhere;  p = exp(logp)

  -C log p has gradient C/p with respect to p: 1/p above τ, at most 1/τ, and 1
  below, where 1/p would explode. τ = 0 keeps SFT's gradient, τ = 1 gives DFT.

  Args:
    logp: log-probability of each target token.
    tau: τ in [0, 1], a probability.

  Returns:
    C in [0, 1]; no gradient passes.

  Source: Eq. 5; code core_algos.py:704 of ZJU-OmniAI/GFT.
  Deviations: Eq. 5 has C = 1 where p >= τ; the code, and this, where p > τ.
  They differ at p = τ only. The code takes p from a second softmax, of
  un-tempered logits; here it is exp(logp), one fact and one argument.
  """
  p = jnp.exp(logp)
  return jax.lax.stop_gradient(jnp.where(p > tau, 1, p))
