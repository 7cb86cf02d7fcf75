"""A trial of an objective on a small made-up batch, before anything runs.

A training step calls an objective on whole responses and, to make gradients in
chunks, on single tokens. Both must say the same.
"""

import contextlib
import functools
import re
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gft_jax.batch import ORIGINS, SELF
from gft_jax.config import ConfigError, LossConfig
from gft_jax.ops import masking
from gft_jax.ops.masking import WeightedMean
from gft_jax.training import metrics
from gft_jax.training.objectives import FORWARD, Objective
from gft_jax.training.terms import Term, View
from gft_jax.types import Array

# Prompts, members of a group and tokens of the made-up batch.
B, G, T = 3, 4, 32
LENGTHS = ((32, 2, 9, 20), (1, 32, 21, 3), (27, 5, 32, 0))
# Steps at which it is made up: what warms up, or changes later, is seen.
STEPS = (3, 0, 1_000_000)
RULE = 'gft_jax/README.md, "An objective", says what a term may depend on'
# What a step measures by these names, besides metrics.observe.
TAKEN = (
  r'loss(_.*)?|grad_norm|max_weight|max_inverse_probability|sampler_mismatch'
  r'|reward(_.*)?|response_length_.*|zero_variance_groups|tokens|refills'
  r'|learning_rate|truncated_fraction'
)
# Compilation takes longer than the trial.
QUICK = {'xla_backend_optimization_level': 0}
Function: TypeAlias = Callable[..., object]
Result = TypeVar('Result')


class Read(NamedTuple):
  """Arrays of K terms.

  Attributes:
    mask: [K, B, G, T].
    values: [K, B, G, T], 0 where the mask of the term is False.
    coefficient: [K].
    slopes: derivatives of a weighted sum of the terms by `view.logp` and
      `view.entropy`, [B, G, T] each.
  """

  mask: Array
  values: Array
  coefficient: Array
  slopes: tuple[Array, ...] = ()


class Fault(Exception):
  """What is wrong with a function of an objective."""


@functools.cache
def try_objective(
  name: str, objective: Objective, settings: LossConfig
) -> None:
  """Calls the functions of an objective on a batch of 3 x 4 x 32 tokens.

  Args:
    name: of the objective.
    objective: its row.
    settings: resolved: no field is None.

  Raises:
    ConfigError: a function raises, or returns something of another kind or
      shape; a term depends on more than its own token, its response's
      advantage and its origin, or a mask on the policy. The line names the
      objective and ends with the function.
  """
  trials = {
    objective.terms: _try_terms,
    objective.advantages: _try_advantages,
    objective.observe: _try_observe,
  }
  with _on_cpu():
    view = _made_up(objective, settings)
    for function, attempt in trials.items():
      try:
        attempt(objective, view, settings)
      except Fault as fault:
        raise ConfigError(
          f'objective {name}: {fault}; see {_name_of(function)}'
        ) from fault.__cause__


def _try_terms(objective: Objective, view: View, settings: LossConfig) -> None:
  """Whole responses and their tokens must give the same terms."""
  names, reads = _read_all(objective, _regimes(view), settings)
  for whole, tokens, blind in reads:
    _compare(names, whole, tokens, blind, np.asarray(view.mask))
  trained = np.asarray(view.mask)
  options = settings.kl_weight or settings.entropy_bonus
  still = not any(
    np.any(slope[trained]) or not np.all(whole.coefficient)
    for whole, *_ in reads
    for slope in whole.slopes
  )
  if still and not options:
    unscored = ', for view.advantages are 0 without advantages= in its row'
    raise Fault(
      'its gradient is 0 at every token'
      + unscored * (objective.advantages is None)
    )


def _compare(
  names: list[str],
  whole: Read,
  tokens: Read,
  blind: Array,
  trained: np.ndarray,
) -> None:
  """Raises Fault where whole responses and their tokens give other terms."""
  for i, name in enumerate(names):
    if not np.array_equal(whole.mask[i], blind[i]):
      raise Fault(
        f'the mask of term {name!r} depends on the policy, so a denominator is'
        f' not known before it is differentiated; {RULE}'
      )
    for field in ('mask', 'values', 'coefficient'):
      a, b = getattr(whole, field)[i : i + 1], getattr(tokens, field)[:, i]
      if not _close(a, b):
        differ = 'differ' if field == 'values' else 'differs'
        raise Fault(
          f'the {field} of term {name!r} for whole responses {differ} from that'
          ' for their tokens one by one, so that loss and gradient would'
          f' disagree; {RULE}'
        )
  for a, b in zip(whole.slopes, tokens.slopes):
    if not _close(a[trained], b.reshape(trained.shape)[trained]):
      raise Fault(
        'its gradient for whole responses differs from that for their tokens'
        f' one by one; {RULE}'
      )


def _regimes(view: View) -> list[View]:
  """The batch at several steps, with ordinary and with extreme chances."""
  rare = np.random.default_rng(2).random((B, G, T)) < 0.1
  factor = np.where(rare, np.float32(15), np.float32(1))
  extreme = view._replace(
    logp=view.logp * factor,
    behavior_logp=view.behavior_logp * factor[::-1],
    advantages=view.advantages * np.float32(4),
  )
  return [
    one._replace(step=np.array(step, np.int32))
    for step in STEPS
    for one in (view, extreme)
  ]


def _read_all(
  objective: Objective, views: list[View], settings: LossConfig
) -> tuple[list[str], list[tuple[Read, Read, Array]]]:
  """What an objective says of whole responses and of their tokens.

  Returns:
    names of its terms; and for each view: what it says of the batch; of each
    token, with an axis of tokens in front; and its masks where it does not see
    the policy.
  """
  kinds = []

  def terms_of(view: View, by: str) -> tuple[Term, ...]:
    found = _called(objective.terms, by, view, settings)
    terms = _checked(found, view, by)
    kinds.append([(term.name, term.reduction) for term in terms])
    if kinds[-1] != kinds[0]:
      raise Fault(f'its terms{by} are {kinds[-1]}, not {kinds[0]}; {RULE}')
    return terms

  def read(view: View, weight: Array, by: str) -> Read:
    def total(logp: Array, entropy: Array) -> tuple[Array, Read]:
      terms = terms_of(view._replace(logp=logp, entropy=entropy), by)
      found = Read(
        jnp.stack([t.mask for t in terms]),
        jnp.stack([masking.select(t.values, t.mask) for t in terms]),
        jnp.stack([jnp.asarray(t.coefficient, jnp.float32) for t in terms]),
      )
      of_tokens = tuple(range(1, 1 + weight.ndim))
      sums = jnp.sum(found.values * weight[None], of_tokens)
      return jnp.sum(found.coefficient * sums), found

    both = jax.grad(total, (0, 1), has_aux=True)
    slopes, found = both(view.logp, view.entropy)
    return found._replace(slopes=slopes)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def read_both(view: View, weight: Array) -> tuple[Read, Read, Array]:
    whole = read(view, weight, '')
    alone = functools.partial(read, by=' for tokens one by one')
    tokens = _of_tokens(alone, view, weight)
    unread = view._replace(logp=0 * view.logp, entropy=0 * view.entropy)
    blind = [term.mask for term in terms_of(unread, '')]
    return whole, tokens, jnp.stack(blind)

  weight = np.random.default_rng(1).normal(size=(B, G, T)).astype(np.float32)
  found = [jax.device_get(read_both(view, weight)) for view in views]
  return [name for name, _ in kinds[0]], found


def _of_tokens(
  function: Callable[[View, Array], Result], view: View, weight: Array
) -> Result:
  """`function` of each token as a batch of its own, n of them in the front."""

  def split(x: Array) -> Array:
    if x.ndim == 3:
      return jnp.reshape(x, (-1, 1, 1))
    return jnp.repeat(jnp.reshape(x, -1), T)[:, None]

  fields = {
    name: split(x)
    for name, x in view._asdict().items()
    if x is not None and name != 'step'
  }

  def one(fields: dict[str, Array], weight: Array) -> Result:
    return function(view._replace(**fields), weight)

  return jax.vmap(one)(fields, split(weight))


def _checked(terms: object, view: View, by: str) -> tuple[Term, ...]:
  """The terms; raises Fault where they are no terms of that view."""
  if isinstance(terms, Term):
    raise Fault('it returns one Term; return a tuple of them, (Term(...),)')
  if isinstance(terms, tuple) and not terms:
    raise Fault('it returns no Term; return a tuple of them, (Term(...),)')
  if not isinstance(terms, tuple):
    raise Fault(f'it returns {_kind(terms)}, not a tuple of Terms')
  for term in terms:
    if not isinstance(term, Term):
      raise Fault(f'it returns a tuple with {_kind(term)}, not of Terms')
    for field, kind in (('values', jnp.floating), ('mask', jnp.bool_)):
      value = getattr(term, field)
      if not _is_array(value, view.logp.shape, kind):
        raise Fault(
          f'the {field} of term {term.name!r}{by} are {_kind(value)}, not'
          f' {_wanted(view.logp.shape, kind)}, as view.logp and view.mask'
        )
    if jnp.shape(term.coefficient) != ():
      raise Fault(
        f'the coefficient of term {term.name!r} is {_kind(term.coefficient)},'
        ' not one number'
      )
    if term.reduction and term.reduction not in masking.REDUCTIONS:
      raise Fault(
        f'reduction={term.reduction!r} of term {term.name!r} is not one of'
        f' {", ".join(masking.REDUCTIONS)}'
      )
  names = [term.name for term in terms]
  if len(set(names)) < len(names):
    raise Fault(f'two Terms have one name: {", ".join(names)}')
  return terms


def _try_advantages(
  objective: Objective, view: View, settings: LossConfig
) -> None:
  function = objective.advantages
  if function is None:
    return
  member = np.any(view.mask, axis=-1)
  own = member & (np.asarray(view.origin) == SELF)
  rewards = member.astype(np.float32)

  def attempt(rewards: Array, member: Array, own: Array) -> None:
    found = _called(function, '', rewards, member, own, settings)
    if not _is_array(found, (B, G), jnp.floating):
      raise Fault(
        f'advantages= returns {_kind(found)} for rewards of the shape {(B, G)},'
        ' not one float for each'
      )

  jax.eval_shape(attempt, rewards, member, own)


def _try_observe(
  objective: Objective, view: View, settings: LossConfig
) -> None:
  def attempt(view: View) -> None:
    found = _called(objective.observe, '', view, settings)
    if not isinstance(found, dict):
      raise Fault(f'observe= returns {_kind(found)}, not a dict')
    taken = metrics.observe(view, settings)[0]
    for name, value in found.items():
      if not isinstance(value, WeightedMean):
        raise Fault(
          f'observe= gives {_kind(value)} as {name!r}, not a WeightedMean, such'
          ' as masking.token_mean(view.logp, view.own)'
        )
      if any(jnp.shape(x) != () for x in value):
        raise Fault(
          f'observe= gives a WeightedMean of {_kind(value.total)} as {name!r},'
          ' not of one number'
        )
      if name in taken or re.fullmatch(TAKEN, str(name)):
        raise Fault(f'observe= gives {name!r}, which is measured already')

  jax.eval_shape(attempt, view)


def _called(function: Function, by: str, *arguments: object) -> object:
  """What the function returns; what it raises becomes a Fault."""
  try:
    return function(*arguments)
  except Exception as error:
    text = str(error).strip() or 'without a message'
    code = getattr(_unwrapped(function), '__code__', None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [
      f.lineno for f in frames if code and f.filename == code.co_filename
    ]
    at = f' at line {lines[-1]}' if lines else ''
    rule = f'; {RULE}' if by else ''
    raise Fault(
      f'it raises {type(error).__name__}{at}{by}: {text.splitlines()[0]}{rule}'
    ) from error


def _made_up(objective: Objective, settings: LossConfig) -> View:
  """Answers of all lengths and origins that it takes, and an empty slot.

  NumPy arrays: nothing is compiled for them.
  """
  rng = np.random.default_rng(0)
  length = np.array(LENGTHS)
  mask = np.arange(T) < length[..., None]
  used = [ORIGINS[origin] for some in objective.origins for origin in some]
  origin = np.resize(sorted(used), (B, G))
  own = mask & (origin == SELF)[..., None]

  def chances() -> np.ndarray:
    return np.where(mask, -rng.exponential(size=mask.shape), 0)

  logp, other, reference = chances(), chances(), chances()
  recomputed = settings.behavior == 'recomputed'
  exact = settings.kl == FORWARD
  advantages = rng.normal(size=(B, G)) * objective.is_scored

  def put(x: np.ndarray) -> Array:
    return np.asarray(x, np.float32)

  return View(
    logp=put(logp),
    behavior_logp=put(np.where(own | recomputed, other, 0)),
    entropy=put(np.where(mask, rng.random(mask.shape), 0)),
    advantages=put(advantages),
    origin=np.asarray(origin, np.int32),
    mask=mask,
    end=mask & (np.arange(T) == length[..., None] - 1),
    step=np.array(3, np.int32),
    reference_logp=put(reference) if settings.kl_weight and not exact else None,
    reference_kl=put(-reference) if settings.kl_weight and exact else None,
  )


def _close(a: Array, b: Array) -> bool:
  """Equal but for the rounding of float32; NaN is its owner's business."""
  a, b = np.ravel(a), np.ravel(b)
  scale = np.max(np.abs(a[np.isfinite(a)]), initial=1.0)
  return np.allclose(a, b, 1e-4, 1e-5 * scale, equal_nan=True)


def _is_array(value: object, shape: tuple[int, ...], kind: type) -> bool:
  return (
    isinstance(value, Array)
    and value.shape == shape
    and jnp.issubdtype(value.dtype, kind)
  )


def _wanted(shape: tuple[int, ...], kind: type) -> str:
  return f'an array of {"bool" if kind is jnp.bool_ else "floats"} {shape}'


def _kind(value: object) -> str:
  """'an array of float32 (3, 4)', or the type of what is no array."""
  if isinstance(value, Array):
    return f'an array of {value.dtype} {value.shape}'
  if isinstance(value, list | tuple | dict):  # What it holds may be traced.
    return f'a {type(value).__name__}'
  return f'the {type(value).__name__} {value!r}'[:80]


def _unwrapped(function: object) -> object:
  while isinstance(function, functools.partial):
    function = function.func
  return function


def _name_of(function: object) -> str:
  """module:function, or file:function of a config file, which is no module."""
  function = _unwrapped(function)
  name = getattr(function, '__qualname__', type(function).__qualname__)
  code = getattr(function, '__code__', None)
  is_module = function.__module__ in sys.modules.keys() - {'__main__'}
  where = function.__module__ if is_module or not code else code.co_filename
  return f'{where}:{name}'


def _on_cpu() -> contextlib.AbstractContextManager:
  """The host, where it is a device too: nothing is worth an accelerator."""
  try:
    return jax.default_device(jax.local_devices(backend='cpu')[0])
  except RuntimeError:
    return contextlib.nullcontext()
