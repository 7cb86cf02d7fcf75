"""The table of objectives: what each needs, and its loss.

An objective is a function from what it sees of a batch to the summands of its
loss, and a row that says what it needs. Nothing else in the project branches
on an objective's name, and a new one is one function and one row:

  OBJECTIVES['mine'] = Objective(my_terms, origins=(GIVEN,))

Functions and docstrings of the published ones stand in methods.py.
"""

import dataclasses
import functools
import math
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gft_jax.batch import SELF, GroupBatch
from gft_jax.config import (
  ConfigError,
  GroupConfig,
  LossConfig,
  nearest,
  one_of,
  require,
)
from gft_jax.ops import advantages, divergences, masking
from gft_jax.training import methods
from gft_jax.training.terms import (
  Advantages,
  Observe,
  Term,
  Terms,
  View,
  resolved,
)
from gft_jax.types import Array

GIVEN, OWN = ('expert', 'teacher'), ('self',)

# Values that a row does not name: what verl runs GRPO with.
COMMON = {
  'behavior': 'sampler',
  'clip_low': 0.2,
  'clip_high': 0.2,
  'dual_clip': 3.0,
  'reduction': 'token_mean',
  'entropy_bonus': 0.0,
  'kl': 'k3',
  'kl_weight': 0.0,
  'overlong_penalty': 0.0,
  'mu_peak': 0.0,
  'mu_valley': 0.0,
  'mu_warmup_steps': 0,
  'mu_decay_steps': 0,
  'refills': 0,
}
BEHAVIORS = ('sampler', 'recomputed')
# The exact KL over the vocabulary, beside the estimators.
FORWARD = 'forward'


class Objective(NamedTuple):
  """One row of the table.

  Attributes:
    terms: (view, settings) -> the summands of the loss.
    origins: sets of origins; a group has an answer of at least one origin of
      each set, and none of an origin that stands in no set.
    advantages: (rewards, member_mask, own, settings) -> [B, G], where `own`
      [B, G] marks the policy's answers; None: no reward is asked for.
    on_policy: its ratio divides by the sampler's probabilities, so it sees the
      policy at the sampler's temperature; else the untempered model.
    published: the values that `loss` and `group` leave to the objective, where
      they are not those of COMMON; pairs of name and value.
    observe: (view, settings) -> metrics of its own.
  """

  terms: Terms
  origins: tuple[tuple[str, ...], ...]
  advantages: Advantages | None = None
  on_policy: bool = False
  published: tuple[tuple[str, float | str], ...] = ()
  observe: Observe = lambda view, settings: {}

  @property
  def is_scored(self) -> bool:
    """Whether it asks for rewards."""
    return self.advantages is not None


# On own answers, and on own answers beside given ones.
_rewarded = functools.partial(
  Objective,
  origins=(OWN,),
  on_policy=True,
  observe=methods.observe_ratio,
)
_hybrid = functools.partial(_rewarded, origins=(GIVEN, OWN))
# LUFFY removes the clip; a ratio never falls below 0.
_UNCLIPPED = (
  ('clip_low', 1.0),
  ('clip_high', math.inf),
  ('dual_clip', 0.0),
  ('reduction', 'length_sum'),
)

OBJECTIVES: dict[str, Objective] = {
  'sft': Objective(methods.sft, (GIVEN,)),
  'dft': Objective(methods.dft, (GIVEN,)),
  'asft': Objective(
    methods.asft, (GIVEN,), published=(('kl', FORWARD), ('kl_weight', 0.1))
  ),
  'psft': Objective(
    methods.psft,
    (GIVEN,),
    observe=methods.observe_psft,
    published=(('behavior', 'recomputed'), ('clip_high', 0.28)),
  ),
  'grpo': _rewarded(methods.grpo, advantages=methods.normalized),
  'dr_grpo': _rewarded(
    methods.dr_grpo,
    advantages=methods.centred,
    published=(('dual_clip', 0.0), ('reduction', 'length_mean')),
  ),
  'dapo': _rewarded(
    methods.dapo,
    advantages=methods.normalized,
    published=(
      ('clip_high', 0.28),
      ('dual_clip', 10.0),
      ('overlong_penalty', 1.0),
      ('refills', 9),
    ),
  ),
  'rloo': _rewarded(methods.rloo, advantages=methods.leave_one_out),
  'grpo_sft': _hybrid(
    methods.grpo_sft, advantages=methods.own_centred, published=_UNCLIPPED
  ),
  'luffy': _hybrid(
    methods.luffy,
    advantages=methods.centred,
    published=(*_UNCLIPPED, ('entropy_bonus', 0.001)),
    observe=methods.observe_luffy,
  ),
  'chord_mu': _hybrid(
    methods.chord_mu,
    advantages=methods.own_normalized,
    published=(('mu_peak', 0.9), ('mu_valley', 0.05), ('mu_decay_steps', 200)),
    observe=methods.observe_chord,
  ),
  'chord_phi': _hybrid(
    methods.chord_phi,
    advantages=methods.own_normalized,
    published=(('mu_peak', 0.1), ('mu_valley', 0.1)),
    observe=methods.observe_chord,
  ),
  'gft': Objective(methods.gft, ((*GIVEN, *OWN),), methods.normalized),
  'gft_no_dcr': Objective(
    methods.gft_no_dcr, ((*GIVEN, *OWN),), methods.normalized
  ),
  'gft_no_gal': Objective(methods.gft_no_gal, (GIVEN,)),
}

Settings = TypeVar('Settings', LossConfig, GroupConfig)


def choose(name: str, group: GroupConfig) -> Objective:
  """The row `name`, after checking that the group has what it needs.

  Raises:
    ConfigError: unknown objective (with the nearest), members of an origin
      that it cannot train on, or none of one that it needs.
  """
  if name not in OBJECTIVES:
    raise ConfigError(
      f'objective {name!r} is not one of {", ".join(OBJECTIVES)}'
      + nearest(name, OBJECTIVES)
    )
  objective = OBJECTIVES[name]
  _check_row(name, objective)
  members = {
    'expert': ('group.experts', group.experts),
    'teacher': ('group.teachers', group.teachers),
    'self': ('group.samples', group.samples),
  }
  used = [origin for origins in objective.origins for origin in origins]
  for origin, (field, count) in members.items():
    require(
      not count or origin in used,
      f'objective {name} trains on {" and ".join(used)} answers only, but'
      f' {field}={count}; set it to 0',
    )
  for origins in objective.origins:
    fields = [members[origin][0] for origin in origins]
    require(
      any(members[origin][1] for origin in origins),
      f'objective {name} needs {" or ".join(origins)} answers, but'
      f' {" and ".join(fields)} are 0',
    )
  return objective


def _check_row(name: str, objective: Objective) -> None:
  """What a row says of itself must be something that is read.

  Raises:
    ConfigError: it is not.
  """
  functions = (objective.terms, objective.advantages, objective.observe)
  require(
    callable(objective.terms)
    and all(f is None or callable(f) for f in functions),
    f'objective {name}: terms, advantages and observe are functions, not'
    f' {functions!r}'[:200],
  )
  known = {*GIVEN, *OWN}
  require(
    bool(objective.origins)
    and all(
      isinstance(some, tuple) and some and known.issuperset(some)
      for some in objective.origins
    ),
    f'objective {name}: origins={objective.origins!r} are not tuples of'
    f" {', '.join(sorted(known))}, such as (('expert', 'teacher'),)",
  )
  for field, _ in objective.published:
    require(
      field in COMMON,
      f'objective {name}: published has {field!r}, which is not one of'
      f' {", ".join(COMMON)}' + nearest(field, COMMON),
    )
  try:
    hash(objective)
  except TypeError as error:
    raise ConfigError(
      f'objective {name}: {error}; its fields are tuples and functions'
    ) from None


def resolve(settings: Settings, objective: Objective) -> Settings:
  """`loss` or `group` settings with what they leave to the objective.

  A field that is None becomes the value with which the objective was
  published. What is resolved already stays as it is.

  Raises:
    ConfigError: a name that is not one of the choices.
  """
  values = COMMON | dict(objective.published)
  settings = dataclasses.replace(
    settings,
    **{
      field.name: values[field.name]
      for field in dataclasses.fields(settings)
      if getattr(settings, field.name) is None
    },
  )
  if isinstance(settings, LossConfig):
    if settings.overlong_penalty and not objective.is_scored:
      raise ConfigError(
        f'loss.overlong_penalty={settings.overlong_penalty} is taken off'
        ' rewards, and this objective asks for none; set it to 0'
      )
    one_of('loss.reduction', resolved(settings.reduction), masking.REDUCTIONS)
    one_of('loss.behavior', resolved(settings.behavior), BEHAVIORS)
    require(
      values['behavior'] != 'recomputed' or settings.behavior == 'recomputed',
      'loss.behavior=sampler: this objective divides by the policy of given'
      ' answers, which no sampler wrote; set it to recomputed',
    )
    one_of('loss.kl', resolved(settings.kl), (*divergences.ESTIMATORS, FORWARD))
  return settings


@jax.named_scope('token_losses')
def with_options(
  objective: Objective, view: View, settings: LossConfig
) -> tuple[Term, ...]:
  """The summands of an objective, and those that any objective can add.

      - entropy_bonus mean_t H_t + kl_weight mean_t KL_t

  Both are token means over the whole mini-batch. KL is to the policy that the
  stage starts from: an estimate on the trained tokens, whose gradient is that
  of the estimate (verl adds it so; k1's is 0 in expectation), or exact. The
  exact one is of the untempered models.
  """
  terms = objective.terms(view, settings)
  if settings.entropy_bonus:
    weight = -settings.entropy_bonus
    terms += (Term(view.entropy, view.mask, weight, 'token_mean', 'entropy'),)
  if settings.kl_weight:
    kl = view.reference_kl
    if kl is None:
      estimator = divergences.ESTIMATORS[resolved(settings.kl)]
      kl = estimator(view.logp, resolved(view.reference_logp))
    terms += (Term(kl, view.mask, settings.kl_weight, 'token_mean', 'kl'),)
  return terms


@jax.named_scope('group_advantages')
def advantages_of(
  objective: Objective, batch: GroupBatch, settings: LossConfig
) -> Float[Array, 'B G']:
  """Advantages of a batch; zeros where there is no reward."""
  if objective.advantages is None:
    return jnp.zeros_like(batch.rewards)
  rewards = batch.rewards
  if settings.overlong_penalty:
    rewards -= settings.overlong_penalty * advantages.overlong(
      batch.responses.length,
      limit=batch.responses.tokens.shape[-1],
      share=settings.overlong_share,
    )
  own = batch.origin == SELF
  return objective.advantages(rewards, batch.member_mask, own, settings)
