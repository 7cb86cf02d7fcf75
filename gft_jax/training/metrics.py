"""What a training step measures, and the check that it is finite."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gft_jax.batch import ORIGINS, SELF, GroupBatch
from gft_jax.config import LossConfig
from gft_jax.ops import diagnostics, masking
from gft_jax.ops.masking import WeightedMean
from gft_jax.training.objectives import Objective
from gft_jax.training.terms import View
from gft_jax.types import Array, Numbers

Metrics = dict[str, WeightedMean]
Maxima = dict[str, Array]

FLOAT32_MAX = float(np.finfo(np.float32).max)


class NonFiniteError(FloatingPointError):
  """Loss or gradient is not finite; the message names stage and step."""


def floats_of(metrics: Metrics, maxima: Maxima) -> dict[str, float]:
  """Waits for the device; a mean over nothing is left out."""
  metrics, maxima = jax.device_get((metrics, maxima))
  means = {k: float(m.value) for k, m in metrics.items() if m.weight > 0}
  # A probability can underflow to 0, and JSON has no word for infinity.
  peaks = {k: min(float(v), FLOAT32_MAX) for k, v in maxima.items()}
  return {f'train/{k}': v for k, v in sorted((means | peaks).items())}


def check_finite(
  stage: str, step: int, record: Numbers, names: Sequence[str]
) -> None:
  """Raises NonFiniteError where one of the named numbers is not finite."""
  for name in names:
    if not math.isfinite(record[name]):
      raise NonFiniteError(
        f'stage {stage}, step {step}: {name} is {record[name]}; the last'
        ' checkpoint before it stands'
      )


@jax.named_scope('diagnosis')
def observe(view: View, settings: LossConfig) -> tuple[Metrics, Maxima]:
  """The paper's diagnosis of the batch."""
  metrics: Metrics = {
    'entropy': masking.token_mean(view.entropy, view.mask),
    'rectified_fraction': diagnostics.rectified_fraction(
      view.logp, view.mask, tau=settings.tau
    ),
  }
  for name, origin in ORIGINS.items():
    chosen = view.mask & (view.origin == origin)[..., None]
    metrics[f'logp_{name}'] = masking.token_mean(view.logp, chosen)
  maxima: Maxima = {
    'max_inverse_probability': diagnostics.largest_inverse_probability(
      view.logp, view.mask
    )
  }
  return metrics, maxima


def sampler_mismatch(
  logp: Float[Array, 'B G T'], batch: GroupBatch
) -> WeightedMean:
  """Mean |log p here - log p in the sampler| over the policy's own tokens.

  The sampler and the training step compute one number by two programs; what
  lies between them biases every ratio.
  """
  own = batch.token_mask & (batch.origin == SELF)[..., None]
  return masking.token_mean(jnp.abs(logp - batch.responses.behavior_logp), own)


@jax.named_scope('diagnosis')
def largest_weight(
  objective: Objective, view: View, settings: LossConfig
) -> Float[Array, '']:
  """Largest |dL/dlog p| / p before reduction: the multiplier of grad p.

  It is 1/p for SFT and C |A| / p, at most max |A| / tau, for GFT (Figure 2).
  """

  def total(logp: Float[Array, 'B G T']) -> Float[Array, '']:
    terms = objective.terms(view._replace(logp=logp), settings)
    values = (masking.select(t.coefficient * t.values, t.mask) for t in terms)
    return sum(map(jnp.sum, values), jnp.float32(0))

  slope = jax.grad(total)(view.logp)
  inverse = jnp.exp(jnp.minimum(-view.logp, 80))  # finite, so 0 x it is 0
  return jnp.max(masking.select(jnp.abs(slope) * inverse, view.mask))


def describe(batch: GroupBatch, *, scored: bool) -> Metrics:
  """Lengths, and with `scored` rewards, by origin of the answers."""
  lengths = batch.responses.length.astype(jnp.float32)
  metrics: Metrics = {}
  for name, origin in ORIGINS.items():
    members = batch.member_mask & (batch.origin == origin)
    metrics[f'response_length_{name}'] = masking.token_mean(lengths, members)
    if scored:
      metrics[f'reward_{name}'] = masking.token_mean(batch.rewards, members)
  if scored:
    metrics['reward'] = masking.token_mean(batch.rewards, batch.member_mask)
    total, weight = diagnostics.effective_groups(
      batch.rewards, batch.member_mask
    )
    metrics['zero_variance_groups'] = WeightedMean(weight - total, weight)
  return metrics
