"""The table of objectives: what each needs, and its token loss.

A new objective is one function and one row. Nothing else in the project
branches on an objective's name.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from gft_jax.batch import ORIGINS
from gft_jax.config import ConfigError, GroupConfig, LossConfig, nearest
from gft_jax.ops import advantages, losses


class View(NamedTuple):
  """What an objective sees of a batch.

  Attributes:
    logp: [B, G, T] float32, 0 where `mask` is False.
    behavior_logp: [B, G, T] float32, likewise.
    advantages: [B, G] float32; zeros if the objective has no advantage.
    origin: [B, G] int32.
    mask: [B, G, T] bool, tokens that train.
  """

  logp: jax.Array
  behavior_logp: jax.Array
  advantages: jax.Array
  origin: jax.Array
  mask: jax.Array


class Term(NamedTuple):
  """One summand of a loss: coefficient * reduction(values, mask).

  Attributes:
    values: [B, G, T] float32, unreduced.
    mask: [B, G, T] bool; depends on the batch, never on the policy, so that
      the denominator of the whole batch is known before differentiation and
      gradients of micro-batches add exactly.
    coefficient: weight of the term.
  """

  values: jax.Array
  mask: jax.Array
  coefficient: float = 1.0


class Objective(NamedTuple):
  """One row of the table.

  Attributes:
    terms: (view, settings) -> the summands of the loss.
    origins: where the answers it trains on may come from.
    advantages: (rewards, member_mask, settings) -> [B, G]; None: no reward
      is asked for.
    tempered: evaluates the policy at the sampler's temperature, so that the
      on-policy ratio to behavior_logp is 1. False: the untempered model.
  """

  terms: Callable[[View, LossConfig], tuple[Term, ...]]
  origins: tuple[str, ...]
  advantages: Callable[..., jax.Array] | None = None
  tempered: bool = False


def _sft(view: View, settings: LossConfig) -> tuple[Term, ...]:
  del settings
  return (Term(losses.sft_token_loss(view.logp), view.mask),)


def _dft(view: View, settings: LossConfig) -> tuple[Term, ...]:
  del settings
  return (Term(losses.dft_token_loss(view.logp), view.mask),)


def _gft(view: View, settings: LossConfig) -> tuple[Term, ...]:
  values = losses.gft_token_loss(view.logp, view.advantages, tau=settings.tau)
  return (Term(values, view.mask),)


def _grpo(view: View, settings: LossConfig) -> tuple[Term, ...]:
  values = losses.grpo_token_loss(
    view.logp,
    view.behavior_logp,
    view.advantages,
    clip_low=settings.clip_low,
    clip_high=settings.clip_high,
    dual_clip=settings.dual_clip,
  )
  return (Term(values, view.mask),)


def _group_normalized(rewards, member_mask, settings: LossConfig) -> jax.Array:
  return advantages.group_normalized(
    rewards, member_mask, epsilon=settings.epsilon
  )


OBJECTIVES = {
  'sft': Objective(_sft, ('expert', 'teacher')),
  'dft': Objective(_dft, ('expert', 'teacher')),
  'gft': Objective(_gft, tuple(ORIGINS), _group_normalized),
  'grpo': Objective(_grpo, ('self',), _group_normalized, tempered=True),
}


def choose(name: str, group: GroupConfig) -> Objective:
  """The row `name`, after checking that the group has what it needs.

  Raises:
    ConfigError: unknown objective (with the nearest), or members of an origin
      that it cannot train on.
  """
  if name not in OBJECTIVES:
    raise ConfigError(
      f'objective {name!r} is not one of {", ".join(OBJECTIVES)}'
      + nearest(name, OBJECTIVES)
    )
  objective = OBJECTIVES[name]
  members = {
    'expert': ('group.experts', group.experts),
    'teacher': ('group.teachers', group.teachers),
    'self': ('group.samples', group.samples),
  }
  for origin, (field, count) in members.items():
    if count and origin not in objective.origins:
      raise ConfigError(
        f'objective {name} trains on {" and ".join(objective.origins)} answers'
        f' only, but {field}={count}; set it to 0'
      )
  return objective
