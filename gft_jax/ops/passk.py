"""pass@k, avg@k, maj@k and how sure one may be of them."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from gft_jax.types import Array


class Interval(NamedTuple):
  """A mean with the ends of its 95 % interval."""

  mean: Float[Array, '']
  low: Float[Array, '']
  high: Float[Array, '']


def pass_at_k(
  correct: Int[Array, '*#problems'],
  samples: Int[Array, '*#problems'] | int,
  k: int,
) -> Float[Array, '*problems']:
  """Chance that one of k answers is right, estimated without bias.

      pass@k = 1 - C(n - c, k) / C(n, k) = 1 - Π_{i<k} (1 - c / (n - i))

  The product is a sum of log1p, which float32 carries to 1e-5 at any k.

  Args:
    correct: c, right answers per problem.
    samples: n, answers per problem; broadcasts with c.
    k: static, at least 1.

  Returns:
    float32. Under jit, where nothing can be raised, samples < k is NaN.

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


def avg_at_k(
  correct: Int[Array, '*#problems'], samples: Int[Array, '*#problems'] | int
) -> Float[Array, '']:
  """Mean accuracy over problems: mean(c / n), float32.

  Args:
    correct: right answers per problem.
    samples: answers per problem; broadcasts with correct.
  """
  correct, samples = jnp.broadcast_arrays(correct, samples)

  return (correct / samples).astype(jnp.float32).mean()


def majority_at_k(
  votes: Int[Array, '*problems n'], correct: Bool[Array, '*problems n'], k: int
) -> Float[Array, '*problems']:
  """Share of blocks of k answers whose most frequent answer is right.

      maj@k = mean over the n // k blocks of k consecutive answers of
              correct[first answer of the block with the most votes]

  A block is k independent answers, so every block, and their mean, estimates
  the accuracy of a vote among k without bias. The mean over all k-subsets
  would vary less, but has no closed form; k = n is the one vote of all, and
  k = 1 is the mean of `correct` where every answer has a vote. Answers that do
  not fill a last block are left out. Of equally frequent answers the first
  wins; a block without a vote is wrong.

  Args:
    votes: equal where the answers to a problem are; -1 is an answer that says
      nothing, and has no vote.
    correct: the answer is right.
    k: static, from 1 to n.

  Returns:
    float32.

  Raises:
    ValueError: k is not in that range.

  Source: Wang et al. 2022 (arXiv 2203.11171), self-consistency.
  """
  chex.assert_equal_shape((votes, correct))
  n = votes.shape[-1]
  if not 1 <= k <= n:
    raise ValueError(f'maj@k with k={k} needs 1 to {n} answers')

  blocks = (*votes.shape[:-1], n // k, k)
  votes = votes[..., : n - n % k].reshape(blocks)
  correct = correct[..., : n - n % k].reshape(blocks)
  same = (votes[..., :, None] == votes[..., None, :]) & (votes >= 0)[..., None]
  first = jnp.argmax(same.sum(axis=-1), axis=-1, keepdims=True)
  right = jnp.take_along_axis(correct & (votes >= 0), first, axis=-1)
  return right.astype(jnp.float32).mean(axis=(-2, -1))


def interval(
  values: Float[Array, ' n'], bounds: tuple[float, float] = (0.0, 1.0)
) -> Interval:
  """Mean over problems with a 95 % interval by the central limit theorem.

      mean ± 1.96 s / √n;  s with n - 1

  The problems are the sample: answers to one problem are not independent, so
  average (or pass@k) them first. Approximate below about 30 problems.

  Args:
    values: one number per problem, within `bounds`.
    bounds: what a value can be at least and at most.

  Returns:
    The ends are cut to `bounds`. One problem says nothing: its interval is
    `bounds`.
  """
  chex.assert_rank(values, 1)
  lowest, highest = bounds

  mean = values.mean()
  if values.size == 1:
    return Interval(
      mean, jnp.full_like(mean, lowest), jnp.full_like(mean, highest)
    )
  reach = 1.96 * values.std(ddof=1) / values.size**0.5
  return Interval(
    mean, jnp.clip(mean - reach, *bounds), jnp.clip(mean + reach, *bounds)
  )
