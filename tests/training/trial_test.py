"""Objectives that cannot train are refused before anything runs."""

import functools
import re
import runpy

import jax
import jax.numpy as jnp
import pytest
from views import ROWS

from gft_jax.config import ConfigError, GroupConfig, LossConfig
from gft_jax.ops import masking
from gft_jax.ops.masking import WeightedMean
from gft_jax.training import objectives
from gft_jax.training.objectives import OBJECTIVES, OWN, Objective, Term
from gft_jax.training.trial import RULE, try_objective


def tried(terms=None, name='mine', loss=None, **row):
  row = {'origins': (OWN,), 'advantages': centred, 'terms': terms or fine} | row
  objective = Objective(**row)
  settings = objectives.resolve(loss or LossConfig(), objective)
  try_objective(name, objective, settings)


def refused(*arguments, **row):
  """The one line that refuses an objective."""
  with pytest.raises(ConfigError) as error:
    tried(*arguments, **row)
  assert '\n' not in str(error.value)
  assert str(error.value).startswith('objective mine: ')
  return str(error.value)


def centred(rewards, member_mask, own, settings):
  return rewards - rewards.mean(axis=1, keepdims=True)


def fine(view, settings):
  """What a term may depend on, all of it."""
  weight = view.advantages[..., None] * jnp.exp(view.logp - view.behavior_logp)
  values = weight - view.entropy + view.end + settings.tau
  coefficient = 1 / (1 + view.step)
  return (
    Term(values, view.own, coefficient, 'token_sum'),
    Term(-view.logp, view.given, name='given'),
  )


@ROWS
def test_every_row_passes(name):
  settings = objectives.resolve(LossConfig(), OBJECTIVES[name])
  try_objective(name, OBJECTIVES[name], settings)


@pytest.mark.parametrize('name', ['sft', 'grpo', 'luffy'])
@pytest.mark.parametrize(
  'loss',
  [
    LossConfig(kl='k3', kl_weight=0.1, entropy_bonus=0.1, rectify_end=False),
    LossConfig(kl='forward', kl_weight=0.1),
  ],
)
def test_rows_pass_beside_a_reference(name, loss):
  settings = objectives.resolve(loss, OBJECTIVES[name])
  try_objective(name, OBJECTIVES[name], settings)


def test_what_the_page_allows_passes():
  tried()
  tried(advantages=None)
  tried(origins=((*objectives.GIVEN, *OWN),))
  tried(functools.partial(fine))


def mean_over_the_response(view, settings):
  length = view.mask.sum(-1, keepdims=True)
  return (Term(-view.logp / length, view.mask),)


def sum_over_the_group(view, settings):
  return (Term(view.logp - view.logp.sum(-2, keepdims=True), view.mask),)


def sum_over_the_batch(view, settings):
  return (Term(-view.logp / view.mask.sum(), view.mask),)


def ratio_of_sequences(view, settings):
  difference = jnp.where(view.mask, view.logp - view.behavior_logp, 0)
  ratio = jnp.exp(difference.sum(-1, keepdims=True))
  values = -view.advantages[..., None] * ratio
  return (Term(jnp.broadcast_to(values, view.mask.shape), view.mask),)


def softmax_over_the_group(view, settings):
  share = jax.nn.softmax(view.logp.sum(-1), axis=-1)[..., None]
  return (Term(-share * view.logp, view.mask),)


def neighbour(view, settings):
  return (Term(view.logp * jnp.roll(view.logp, 1, axis=-1), view.mask),)


def position(view, settings):
  place = jnp.arange(view.mask.shape[-1], dtype=jnp.float32)
  place = jnp.broadcast_to(place, view.mask.shape)
  return (Term(-view.logp * jnp.exp(-place), view.mask),)


def advantages_of_others(view, settings):
  scale = jnp.abs(view.advantages).max()
  weight = (view.advantages / scale)[..., None]
  return (Term(-weight * view.logp, view.mask),)


def second_term(view, settings):
  """The first is fine."""
  far = view.entropy - view.entropy.mean()
  return (Term(-view.logp, view.mask), Term(far, view.mask, name='far'))


def gradient_alone(view, settings):
  """Its values are 1 whatever the tokens are."""
  apart = view.logp - jax.lax.stop_gradient(view.logp)
  ratio = jnp.exp(jnp.where(view.mask, apart, 0).sum(-1, keepdims=True))
  return (Term(jnp.broadcast_to(-ratio, view.mask.shape), view.mask),)


def coefficient_of_the_batch(view, settings):
  return (Term(-view.logp, view.mask, view.advantages.max()),)


def mask_of_long_answers(view, settings):
  long = view.mask.sum(-1, keepdims=True) > 2
  return (Term(-view.logp, view.mask & long),)


@pytest.mark.parametrize(
  ('terms', 'what'),
  [
    (mean_over_the_response, "values of term 'policy'"),
    (sum_over_the_group, "values of term 'policy'"),
    (sum_over_the_batch, "values of term 'policy'"),
    (ratio_of_sequences, "values of term 'policy'"),
    (softmax_over_the_group, "values of term 'policy'"),
    (neighbour, "values of term 'policy'"),
    (position, "values of term 'policy'"),
    (advantages_of_others, "values of term 'policy'"),
    (second_term, "values of term 'far'"),
    (gradient_alone, 'its gradient for whole responses'),
    (coefficient_of_the_batch, "the coefficient of term 'policy'"),
    (mask_of_long_answers, "the mask of term 'policy'"),
  ],
)
def test_a_term_that_couples_tokens_is_refused(terms, what):
  line = refused(terms)
  assert what in line and RULE in line
  assert line.endswith(f'; see {__name__}:{terms.__name__}')


def test_a_mask_that_depends_on_the_policy_is_refused():
  def likely(view, settings):
    return (Term(-view.logp, view.mask & (view.logp > -1)),)

  def uncertain(view, settings):
    return (Term(-view.logp, view.mask & (view.entropy > 0.1)),)

  for terms in (likely, uncertain):
    line = refused(terms)
    assert 'depends on the policy' in line and line.endswith(terms.__name__)


def test_a_function_of_a_config_file_is_named_by_its_file(tmp_path):
  path = tmp_path / 'recipe.py'
  path.write_text('def length(view, settings):\n  return view.mask.sum()\n')
  terms = runpy.run_path(str(path))['length']
  assert refused(terms).endswith(f'; see {path}:length')


def test_a_callable_object_is_named_by_its_class():
  class Length:
    def __call__(self, view, settings):
      return (Term(view.logp.sum(-1), view.mask),)

  assert refused(Length()).endswith('Length')


@pytest.mark.parametrize(
  ('advantages', 'what'),
  [(None, 'are 0 without advantages= in its row'), (centred, 'at every token')],
)
def test_a_gradient_of_0_is_refused(advantages, what):
  def reinforce(view, settings):
    weight = view.advantages[..., None] * (advantages is None)
    return (Term(-weight * view.logp, view.mask),)

  assert what in refused(reinforce, advantages=advantages)


def test_a_term_that_only_begins_later_passes():
  def late(view, settings):
    return (Term(-view.logp, view.mask, (view.step > 100) * 1.0),)

  def anchored(view, settings):
    """The KL of loss.kl_weight alone trains."""
    return (Term(0 * view.logp, view.mask),)

  tried(late)
  tried(anchored, loss=LossConfig(kl_weight=0.1))
  assert 'is 0 at every token' in refused(anchored)


def after_a_warm_up(view, settings):
  late = jnp.where(view.step > 100, view.mask.sum(-1, keepdims=True), 1)
  return (Term(-view.logp / late, view.mask),)


def of_long_answers(view, settings):
  length = view.mask.sum(-1, keepdims=True)
  return (Term(-view.logp * jnp.where(length > 20, 20 / length, 1), view.mask),)


def vetoed(view, settings):
  """A response with one very unlikely token does not train."""
  rare = jnp.any(view.mask & (view.logp < -20), -1, keepdims=True)
  return (Term(jnp.where(rare, 0.0, -view.logp), view.mask),)


@pytest.mark.parametrize('terms', [after_a_warm_up, of_long_answers, vetoed])
def test_what_couples_tokens_in_some_regime_alone_is_refused(terms):
  assert 'differ from that for their tokens one by one' in refused(terms)


def one_more_of_batches(view, settings):
  """A term that single tokens do not have."""
  term = Term(-view.logp, view.mask)
  return (term, term._replace(name='b'))[: view.logp.ndim - 1]


def another_reduction(view, settings):
  whole = view.logp.ndim > 2
  reduction = 'token_sum' if whole else 'token_mean'
  return (Term(-view.logp, view.mask, reduction=reduction),)


@pytest.mark.parametrize('terms', [one_more_of_batches, another_reduction])
def test_terms_of_another_kind_for_tokens_are_refused(terms):
  line = refused(terms)
  assert 'its terms for tokens one by one are' in line and RULE in line


def raises(view, settings):
  return missing(view)  # noqa: F821


def of_three_axes(view, settings):
  """It reads the axes of a batch, which a token alone has not."""
  first, last = view.logp.reshape(3, 4, 32), view.mask
  return (Term(first, last),)


@pytest.mark.parametrize(
  ('terms', 'what'),
  [
    (raises, r'it raises NameError at line \d+: '),
    (of_three_axes, r'it raises TypeError at line \d+ for tokens one by one'),
    (lambda view: (), 'it raises TypeError: .*takes 1 positional argument'),
    (lambda v, s: Term(v.logp, v.mask), 'one Term; return a tuple of them'),
    (lambda v, s: -v.logp, r'an array of float32 \(3, 4, 32\), not a tuple'),
    (lambda v, s: None, 'the NoneType None, not a tuple of Terms'),
    (lambda v, s: (), r'it returns no Term; return a tuple'),
    (lambda v, s: (-v.logp,), 'a tuple with an array of float32'),
    (
      lambda v, s: (Term(v.logp.sum(-1), v.mask),),
      r'values .* are an array of float32 \(3, 4\), not an array of floats'
      r' \(3, 4, 32\)',
    ),
    (
      lambda v, s: (Term(v.logp.sum(), v.mask),),
      r'are an array of float32 \(\)',
    ),
    (
      lambda v, s: (Term(v.logp, v.mask * 1.0),),
      'mask .* not an array of bool',
    ),
    (lambda v, s: (Term(v.mask, v.mask),), 'values .* not an array of floats'),
    (
      lambda v, s: (Term(v.logp, v.mask, v.logp),),
      'coefficient .* not one num',
    ),
    (
      lambda v, s: (Term(v.logp, v.mask, reduction='mean'),),
      "reduction='mean' of term 'policy' is not one of token_mean",
    ),
    (lambda v, s: (Term(v.logp, v.mask),) * 2, 'two Terms have one name'),
  ],
)
def test_a_function_that_is_no_objective_is_refused(terms, what):
  line = refused(terms)
  assert re.search(what, line), line
  assert line.rpartition('; see ')[2].startswith(f'{__name__}:')


@pytest.mark.parametrize(
  ('advantages', 'what'),
  [
    (lambda r, m, o, s: r.mean(axis=1), r'\(3,\) for rewards of the shape'),
    (lambda r, m, o, s: r[..., None], r'\(3, 4, 1\) for rewards'),
    (lambda r, m, o, s: r > 0, 'an array of bool'),
    (lambda r, m, o, s: [0.0], 'a list'),
    (lambda r, m, o: r, 'raises TypeError: .*takes 3 positional'),
    (lambda r, m, o, s: r / s.nothing, 'raises AttributeError at line'),
  ],
)
def test_advantages_of_another_shape_are_refused(advantages, what):
  line = refused(advantages=advantages)
  assert re.search(what, line), line
  assert line.endswith('<lambda>')


@pytest.mark.parametrize(
  ('observe', 'what'),
  [
    (lambda v, s: v.logp, 'observe= returns an array'),
    (lambda v, s: {'x': v.logp.mean()}, "gives an array of float32 () as 'x'"),
    (
      lambda v, s: {'x': WeightedMean(v.logp, v.logp)},
      'WeightedMean of an arr',
    ),
    (
      lambda v, s: {'entropy': masking.token_mean(v.entropy, v.mask)},
      "'entropy', which is measured already",
    ),
    (
      lambda v, s: {'loss': masking.token_mean(v.entropy, v.mask)},
      "'loss', which is measured already",
    ),
    (lambda v: {}, 'raises TypeError'),
  ],
)
def test_what_is_not_observed_is_refused(observe, what):
  assert what in refused(observe=observe)


@pytest.mark.parametrize(
  ('row', 'what'),
  [
    ({'published': (('kl_weigth', 0.1),)}, 'did you mean kl_weight'),
    ({'published': (('tau', 0.1),)}, "has 'tau', which is not one of behavior"),
    ({'origins': ('self',)}, r"origins=\('self',\) are not tuples of"),
    ({'origins': (('selves',),)}, 'are not tuples of expert, self, teacher'),
    ({'origins': ()}, 'are not tuples of'),
    ({'published': [('kl_weight', 0.1)]}, 'unhashable'),
  ],
)
def test_a_row_that_nothing_reads_is_refused(monkeypatch, row, what):
  objective = Objective(**{'terms': fine, 'origins': (OWN,)} | row)
  monkeypatch.setitem(OBJECTIVES, 'mine', objective)
  with pytest.raises(ConfigError, match=f'^objective mine: .*{what}'):
    objectives.choose('mine', GroupConfig(0, 0, 4))
