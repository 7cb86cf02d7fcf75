"""Batches cut into parts and put together again; gradients that add up."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from gft_jax.types import Tree

Gradients = TypeVar('Gradients')
Added = TypeVar('Added')
Maxima = TypeVar('Maxima')


def split(tree: Tree, parts: int) -> Tree:
  """[B, ...] leaves -> [parts, B / parts, ...].

  Row b goes to part b % parts: with B sharded over devices every part is
  spread over all of them and no row moves.
  """

  def one(x):
    return jnp.swapaxes(
      x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1
    )

  return jax.tree.map(one, tree)


def join(tree: Tree) -> Tree:
  """The inverse of `split`."""

  def one(x):
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

  return jax.tree.map(one, tree)


def accumulate(
  differentiate: Callable[[Tree], tuple[Gradients, tuple[Added, Maxima]]],
  mini: Tree,
  micro_batches: int,
) -> tuple[tuple[Added, Maxima], Gradients]:
  """Adds gradients and sums over micro-batches, and takes maxima.

  Args:
    differentiate: micro-batch -> (gradients, (what adds, maxima)).
    mini: arrays [B, ...].
    micro_batches: parts, one after the other; 1 runs the whole at once.
  """
  if micro_batches == 1:
    grads, aux = differentiate(mini)
    return aux, grads

  def body(total, micro):
    grads, (added, maxima) = differentiate(micro)
    total_sum, total_max = total
    return (
      jax.tree.map(jnp.add, total_sum, (added, grads)),
      jax.tree.map(jnp.maximum, total_max, maxima),
    ), None

  parts = split(mini, micro_batches)
  first = jax.tree.map(lambda x: x[0], parts)
  grads, (added, maxima) = jax.eval_shape(differentiate, first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (added, grads))
  least = jax.tree.map(lambda s: jnp.full(s.shape, -jnp.inf, s.dtype), maxima)
  ((added, grads), maxima), _ = jax.lax.scan(body, (zeros, least), parts)
  return (added, maxima), grads
