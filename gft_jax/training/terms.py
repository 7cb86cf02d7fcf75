"""What an objective sees of a batch, and the summands that it gives."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from gft_jax.batch import SELF
from gft_jax.config import LossConfig
from gft_jax.ops.masking import WeightedMean


class View(NamedTuple):
  """What an objective sees of a batch.

  Attributes:
    logp: [B, G, T] float32, 0 where `mask` is False; so for all of this shape.
    behavior_logp: [B, G, T] float32, log-probabilities that a ratio divides
      by: the sampler's, 0 at given answers; or those of the policy as the
      step began.
    entropy: [B, G, T] float32, of the policy.
    advantages: [B, G] float32; zeros if the objective has no advantage.
    origin: [B, G] int32.
    mask: [B, G, T] bool, tokens that train.
    end: [B, G, T] bool, the last token of each answer that came to its end.
    step: [] int32, optimizer updates of this stage that are done.
    reference_logp: [B, G, T] float32 under the policy that the stage started
      from, or None where `kl_weight` is 0 or `kl` is exact.
    reference_kl: [B, G, T] float32, exact KL(start || policy), or None.
  """

  logp: jax.Array
  behavior_logp: jax.Array
  entropy: jax.Array
  advantages: jax.Array
  origin: jax.Array
  mask: jax.Array
  end: jax.Array
  step: jax.Array
  reference_logp: jax.Array | None = None
  reference_kl: jax.Array | None = None

  @property
  def own(self) -> jax.Array:
    """[B, G, T] bool: tokens of the policy's own answers."""
    return self.mask & (self.origin == SELF)[..., None]

  @property
  def given(self) -> jax.Array:
    """[B, G, T] bool: tokens of expert and teacher answers."""
    return self.mask & (self.origin != SELF)[..., None]

  def kept(self, settings: LossConfig) -> jax.Array | None:
    """Tokens that are not rectified; None, the paper, rectifies all."""
    return None if settings.rectify_end else self.end


class Term(NamedTuple):
  """One summand of a loss: coefficient * reduction(values, mask).

  Attributes:
    values: [B, G, T] float32, unreduced. A value depends on the view at its
      own token, and on its response's advantage and origin, alone: gradients
      are made token by token in the forward pass, on views of shape
      [n, 1]. No sum over T or G, no ratio of whole sequences.
    mask: [B, G, T] bool; depends on the batch, never on the policy, so that
      the denominator of the whole batch is known before differentiation and
      gradients of micro-batches add exactly.
    coefficient: weight of the term; may depend on the step.
    reduction: a name in masking.REDUCTIONS; '' is `loss.reduction`.
    name: of the metric that reports it, where there are several.
  """

  values: jax.Array
  mask: jax.Array
  coefficient: float | jax.Array = 1.0
  reduction: str = ''
  name: str = 'policy'


Terms = Callable[[View, LossConfig], tuple[Term, ...]]
Observe = Callable[[View, LossConfig], dict[str, WeightedMean]]
