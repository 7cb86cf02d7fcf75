"""pass@k, avg@k and how sure one may be of them."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Interval(NamedTuple):
  """A mean with the ends of its 95 % interval; three scalars."""

  mean: chex.Array
  low: chex.Array
  high: chex.Array


def pass_at_k(correct: chex.Array, samples: chex.Array, k: int) -> chex.Array:
  """Chance that one of k answers is right, estimated without bias.

      pass@k = 1 - C(n - c, k) / C(n, k) = 1 - Π_{i<k} (1 - c / (n - i))

  The product is a sum of log1p, which float32 carries to 1e-5 at any k.

  Args:
    correct: [...] integers c, right answers per problem.
    samples: [...] integers n, answers per problem; broadcasts with c.
    k: static, at least 1.

  Returns:
    [...] float32. Under jit, where nothing can be raised, samples < k is NaN.

  Raises:
    ValueError: k < 1, or samples < k where the values are known.

  Source: Chen et al. 2021 (arXiv 2107.03374), Eq. 1.
  """
  if k < 1:
    raise ValueError(f'k={k} must be at least 1')
  if not isinstance(samples, jax.core.Tracer):
    with jax.ensure_compile_time_eval():
      fewest = jnp.min(samples).item()
    if fewest < k:
      raise ValueError(f'pass@k with k={k} needs samples >= k, got {fewest}')
  correct, samples = jnp.broadcast_arrays(correct, samples)

  enough = samples - correct >= k  # else some answer of any k is right
  chance = jax.vmap(lambda i: jnp.where(enough, correct / (samples - i), 0))
  log_failure = jnp.log1p(-chance(jnp.arange(k))).sum(axis=0)
  passed = 1 - jnp.where(enough, jnp.exp(log_failure), 0)
  return jnp.where(samples >= k, passed, jnp.nan).astype(jnp.float32)


def avg_at_k(correct: chex.Array, samples: chex.Array) -> chex.Array:
  """Mean accuracy over problems: mean(c / n), a scalar; float32.

  Args:
    correct: [...] integers, right answers per problem.
    samples: [...] integers, answers per problem; broadcasts with correct.
  """
  correct, samples = jnp.broadcast_arrays(correct, samples)

  return (correct / samples).astype(jnp.float32).mean()


def interval(values: chex.Array) -> Interval:
  """Mean over problems with a 95 % interval by the central limit theorem.

      mean ± 1.96 s / √n;  s with n - 1

  The problems are the sample: answers to one problem are not independent, so
  average (or pass@k) them first. Approximate below about 30 problems.

  Args:
    values: [n], one number in [0, 1] per problem.

  Returns:
    Scalars; the ends are cut to [0, 1]. One problem says nothing: [0, 1].
  """
  chex.assert_rank(values, 1)

  mean = values.mean()
  if values.size == 1:
    return Interval(mean, jnp.zeros_like(mean), jnp.ones_like(mean))
  reach = 1.96 * values.std(ddof=1) / values.size**0.5
  return Interval(
    mean, jnp.clip(mean - reach, 0, 1), jnp.clip(mean + reach, 0, 1)
  )
