"""What an objective sees of a batch, and the summands that it gives."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from jaxtyping import Bool, Float, Int

from gft_jax.batch import SELF
from gft_jax.config import LossConfig
from gft_jax.ops.masking import WeightedMean
from gft_jax.types import Array

Value = TypeVar('Value')


class View(NamedTuple):
  """What an objective sees of a batch.

  It also sees n tokens by themselves, as n responses of one token: then B G is
  n, and T is 1.

  Attributes:
    logp: 0 where `mask` is False; so for all of this shape.
    behavior_logp: log-probabilities that a ratio divides by: the sampler's, 0
      at given answers; or those of the policy as the step began.
    entropy: of the policy, nats.
    advantages: zeros if the objective has no advantage.
    origin: one of batch.EXPERT, TEACHER and SELF.
    mask: tokens that train.
    end: the last token of each answer that came to its end.
    step: optimizer updates of this stage that are done.
    reference_logp: under the policy that the stage started from, or None where
      `kl_weight` is 0 or `kl` is exact.
    reference_kl: exact KL(start || policy), nats, or None.
  """

  logp: Float[Array, 'B G T']
  behavior_logp: Float[Array, 'B G T']
  entropy: Float[Array, 'B G T']
  advantages: Float[Array, 'B G']
  origin: Int[Array, 'B G']
  mask: Bool[Array, 'B G T']
  end: Bool[Array, 'B G T']
  step: Int[Array, '']
  reference_logp: Float[Array, 'B G T'] | None = None
  reference_kl: Float[Array, 'B G T'] | None = None

  @property
  def own(self) -> Bool[Array, '*group T']:
    """Tokens of the policy's own answers."""
    return self.mask & (self.origin == SELF)[..., None]

  @property
  def given(self) -> Bool[Array, '*group T']:
    """Tokens of expert and teacher answers."""
    return self.mask & (self.origin != SELF)[..., None]

  def kept(self, settings: LossConfig) -> Bool[Array, '*group T'] | None:
    """Tokens that are not rectified; None, the paper, rectifies all."""
    return None if settings.rectify_end else self.end


class Term(NamedTuple):
  """One summand of a loss: coefficient * reduction(values, mask).

  Attributes:
    values: float32, unreduced. A value depends on the view at its own token,
      and on its response's advantage and origin, alone: gradients are made
      token by token in the forward pass, on views of shape [n, 1]. No sum over
      T or G, no ratio of whole sequences.
    mask: depends on the batch, never on the policy, so that the denominator of
      the whole batch is known before differentiation and gradients of
      micro-batches add exactly.
    coefficient: weight of the term; may depend on the step.
    reduction: a name in masking.REDUCTIONS; '' is `loss.reduction`.
    name: of the metric that reports it, where there are several.
  """

  values: Float[Array, 'B G T']
  mask: Bool[Array, 'B G T']
  coefficient: float | Float[Array, ''] = 1.0
  reduction: str = ''
  name: str = 'policy'


Terms = Callable[[View, LossConfig], tuple[Term, ...]]
Observe = Callable[[View, LossConfig], dict[str, WeightedMean]]
# (rewards, member_mask, own, settings) -> advantages, [B, G] each.
Advantages = Callable[[Array, Array, Array, LossConfig], Array]


def resolved(value: Value | None) -> Value:
  """A setting that `objectives.resolve` has filled in.

  Raises:
    ValueError: it has not.
  """
  if value is None:
    raise ValueError('a setting is None; see objectives.resolve')
  return value
