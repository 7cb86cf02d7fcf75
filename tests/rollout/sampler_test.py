"""A hand-made table of probabilities is the model: the truth is known."""

import collections
import functools
import os
import re
import subprocess
import sys

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gft_jax.batch import SELF, GroupBatch, Prompts
from gft_jax.config import Architecture, MeshConfig
from gft_jax.models import attention, forward
from gft_jax.models.transformer import Transformer
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh
from gft_jax.rollout import sampler
from gft_jax.rollout.sampler import Sampling

STOP = 3
# TABLE[a][b] is p(next = b | last = a); rows sum to 1.
TABLE = np.array(
  [
    [0.10, 0.20, 0.30, 0.25, 0.15],
    [0.05, 0.05, 0.50, 0.30, 0.10],
    [0.40, 0.10, 0.10, 0.20, 0.20],
    [0.20, 0.20, 0.20, 0.20, 0.20],
    [0.01, 0.01, 0.01, 0.01, 0.96],
  ]
)


@flax.struct.dataclass
class Last:
  hidden: jax.Array


class Table(nn.Module):
  """p(next | last) as a model: the state is the one-hot last token."""

  @nn.nowrap
  def one_hot(self, tokens):
    return jax.nn.one_hot(tokens, len(TABLE))

  def prefill(self, tokens, length):
    last = jnp.take_along_axis(tokens, length[:, None] - 1, axis=1)[:, 0]
    return Last(self.one_hot(last))

  def empty_cache(self, prefix, group_size, max_tokens):
    return ()

  def decode(self, prefix, cache, tokens, slots, step):
    return self.one_hot(tokens), cache

  def keep_rows(self, cache, rows):
    return cache

  @nn.compact
  def head(self):
    return self.param('table', nn.initializers.zeros, TABLE.shape)


def table(probabilities=TABLE):
  # Not log(0): the one-hot product with -inf would be NaN.
  logits = np.log(np.maximum(probabilities, 1e-30))
  return {'table': jnp.asarray(logits, jnp.float32)}


def prompts_of(*last, index=None):
  tokens = jnp.array([[t, 0] for t in last], jnp.int32)
  index = jnp.arange(len(last)) if index is None else jnp.asarray(index)
  return Prompts(tokens, jnp.ones(len(last), jnp.int32), index)


jitted = jax.jit(
  sampler.sample_groups,
  static_argnames=(
    'model',
    'group_size',
    'max_tokens',
    'sampling',
  ),
)


def sample(prompts, *, params=None, seed=0, **settings):
  size = settings.pop('group_size', 4)
  most = settings.pop('max_tokens', 6)
  return jitted(
    Table(),
    table() if params is None else params,
    prompts,
    jax.random.key(seed),
    group_size=size,
    max_tokens=most,
    sampling=Sampling(**{'stop_ids': (STOP,)} | settings),
  )


def counts_of_first(prompts, **settings):
  responses = sample(prompts, group_size=4000, max_tokens=1, **settings)
  counted = collections.Counter(np.asarray(responses.tokens).ravel().tolist())
  return np.array([counted[i] for i in range(len(TABLE))])


def expected_first(row, temperature=1.0, keep=slice(None)):
  weights = np.zeros(len(TABLE))
  weights[keep] = TABLE[row][keep] ** (1 / temperature)
  return weights / weights.sum()


@pytest.mark.parametrize(
  ('settings', 'expected'),
  [
    ({}, expected_first(0)),
    ({'temperature': 0.5}, expected_first(0, 0.5)),
    ({'temperature': 2.0}, expected_first(0, 2.0)),
    ({'top_k': 2}, expected_first(0, keep=[2, 3])),
    ({'top_k': 99}, expected_first(0)),
    # Sorted masses are .30 .55 .75 .90 1: three tokens reach .7.
    ({'top_p': 0.7}, expected_first(0, keep=[1, 2, 3])),
    ({'top_p': 0.01}, expected_first(0, keep=[2])),
    # Renormalised over the first three: .40 .73 1.
    ({'top_k': 3, 'top_p': 0.7}, expected_first(0, keep=[2, 3])),
    ({'min_p': 0.55}, expected_first(0, keep=[1, 2, 3])),
    ({'min_p': 1.0}, expected_first(0, keep=[2])),
    ({'temperature': 0.0}, expected_first(0, keep=[2])),
  ],
)
def test_distribution_of_the_first_token(settings, expected):
  counts = counts_of_first(prompts_of(0), **settings)
  possible = expected > 0
  assert counts[~possible].sum() == 0
  if possible.sum() > 1:
    p_value = scipy.stats.chisquare(
      counts[possible], expected[possible] * counts.sum()
    ).pvalue
    assert p_value > 1e-3, (counts, expected)


def test_later_tokens_follow_the_last_one():
  responses = sample(prompts_of(0), group_size=4000, max_tokens=2)
  tokens = np.asarray(responses.tokens)[0]
  for last in (0, 1, 2, 4):
    after = tokens[tokens[:, 0] == last, 1]
    counts = np.bincount(after, minlength=len(TABLE))
    expected = TABLE[last] * counts.sum()
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_lengths_include_the_stop_token_and_padding_is_zero():
  responses = sample(prompts_of(0, 1, 2, 4), group_size=16)
  tokens, length = np.asarray(responses.tokens), np.asarray(responses.length)
  for row, count in zip(tokens.reshape(-1, 6), length.ravel()):
    stops = np.flatnonzero(row[:count] == STOP)
    assert stops.tolist() in ([count - 1], []) and (len(stops) or count == 6)
    assert (row[count:] == 0).all()
  assert {1, 6} <= set(length.ravel().tolist())


@pytest.mark.parametrize(
  ('probability', 'length'), [(1.0, 1), (0.0, 6)], ids=['only', 'never']
)
def test_nothing_but_stops_and_no_stop(probability, length):
  row = np.where(np.arange(5) == STOP, probability, (1 - probability) / 4)
  responses = sample(prompts_of(0, 1), params=table(np.tile(row, (5, 1))))
  assert (responses.length == length).all()
  assert (np.asarray(responses.tokens == STOP).any(-1) == (length == 1)).all()


def test_a_stop_sequence_or_a_limit_only_cuts():
  """The same tokens and log-probabilities, up to where the answer ends."""
  prompts = prompts_of(0, 1, 2, 3)
  settings = {'group_size': 64, 'max_tokens': 12, 'stop_ids': ()}
  free = sample(prompts, **settings)
  # What is not written yet is 0: (2, 0, 0) must not end a first token 2.
  sequences = ((1, 2), (3, 1, 1), (2, 0, 0), (0,) * 13)
  limits = jnp.array([3, 12, 20, 5])
  stopped = sample(
    prompts.replace(limit=limits), stop_sequences=sequences, **settings
  )
  ends = 0
  for b, g in np.ndindex(free.length.shape):
    tokens = free.tokens[b, g].tolist()
    most = min(12, int(limits[b]))
    length = next(
      (
        n
        for n in range(1, most)
        if any(tuple(tokens[:n][-len(s) :]) == s for s in sequences)
      ),
      most,
    )
    ends += length < most
    assert stopped.length[b, g] == length
    for ours, whole in zip(
      (stopped.tokens, stopped.behavior_logp), (free.tokens, free.behavior_logp)
    ):
      np.testing.assert_array_equal(ours[b, g, :length], whole[b, g, :length])
      assert not ours[b, g, length:].any()
  assert 20 < ends < 200


def test_several_stop_ids():
  responses = sample(prompts_of(0), group_size=64, stop_ids=(STOP, 4))
  tokens, length = np.asarray(responses.tokens), np.asarray(responses.length)
  last = np.take_along_axis(tokens, length[..., None] - 1, -1)[..., 0]
  assert {STOP, 4} <= set(last.ravel().tolist())
  inner = np.arange(6) < length[..., None] - 1
  assert not np.isin(tokens[inner], (STOP, 4)).any()


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0, 0.0])
def test_behavior_logp_is_of_the_unfiltered_distribution(temperature):
  prompts = prompts_of(0, 1, 2, 4)
  responses = sample(prompts, temperature=temperature, top_k=2, top_p=0.9)
  scaled = TABLE ** (1 / (temperature or 1.0))
  logp = np.log(scaled / scaled.sum(1, keepdims=True))
  tokens, length = np.asarray(responses.tokens), np.asarray(responses.length)
  for b, g in np.ndindex(*length.shape):
    last = int(prompts.tokens[b, 0])
    for t in range(length[b, g]):
      token = tokens[b, g, t]
      assert responses.behavior_logp[b, g, t] == pytest.approx(
        logp[last, token], abs=1e-5
      )
      last = token
    assert (responses.behavior_logp[b, g, length[b, g] :] == 0).all()


def test_bits_depend_on_index_and_member_not_on_row_or_batch():
  whole = sample(prompts_of(0, 1, 2, 4, index=[7, 3, 9, 5]))
  permuted = sample(prompts_of(4, 0, 2, 1, index=[5, 7, 9, 3]))
  alone = sample(prompts_of(2, index=[9]), group_size=2)
  order = np.array([3, 0, 2, 1])
  chex.assert_trees_all_equal(jax.tree.map(lambda x: x[order], whole), permuted)
  np.testing.assert_array_equal(whole.tokens[2, :2], alone.tokens[0])


def test_members_prompts_and_keys_differ():
  tokens = np.asarray(sample(prompts_of(0, 0), group_size=32).tokens)
  other = np.asarray(sample(prompts_of(0, 0), group_size=32, seed=1).tokens)
  assert len(np.unique(tokens[0], axis=0)) > 16
  assert (tokens[0] != tokens[1]).any() and (tokens != other).any()


@pytest.mark.parametrize(
  'shape', [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=['data', 'fsdp', 'mixed']
)
def test_same_tokens_on_any_mesh(shape):
  prompts = prompts_of(*([0, 1, 2, 4] * 2))
  prompts = prompts.replace(limit=jnp.array([1, 2, 3, 4, 5, 6, 6, 6]))
  mesh = make_mesh(MeshConfig(*shape))
  spread = sharding.to_global(mesh, prompts)
  on_mesh = jax.jit(lambda p: sample(p, group_size=4))(spread)
  chex.assert_trees_all_close(sample(prompts), on_mesh, rtol=1e-6)
  # Each device alone with its prompts, as the engine samples.
  run = jax.jit(
    sharding.over_prompts(
      lambda params, prompts, key: sampler.sample_groups(
        Table(),
        params,
        prompts,
        key,
        group_size=4,
        max_tokens=6,
        sampling=Sampling(stop_ids=(STOP,)),
      ),
      whole=(0, 2),
    )
  )
  arguments = table(), spread, jax.random.key(0)
  with jax.set_mesh(mesh):
    found = run(*arguments)
    text = run.lower(*arguments).compile().as_text()
  chex.assert_trees_all_close(sample(prompts), found, rtol=1e-6)
  if shape[2] == 1:
    assert not re.search(
      'all-gather|all-reduce|all-to-all|collective-permute', text
    )


def test_draw_never_picks_a_token_of_probability_zero():
  weights = jnp.array([[0.0, 0.4, 0.0, 0.1, 0.0]])
  largest = np.nextafter(np.float32(1), np.float32(0))
  for uniform in (0.0, 0.5, largest):
    token = sampler.draw(weights, jnp.array([uniform], jnp.float32))
    assert int(token[0]) in (1, 3)


@pytest.mark.parametrize('block', [256, 50_000])
def test_draw_is_exact_where_the_cumulative_sum_is_not_monotone(
  block, monkeypatch
):
  """In blocks, and where a block is so large that its own sum is not."""
  monkeypatch.setattr(sampler, 'BLOCK', block)
  rng = np.random.default_rng(0)
  logp = rng.normal(size=50_000).astype(np.float32) * 6
  logp[rng.random(50_000) < 0.5] = -np.inf
  weights = jnp.exp(logp - logp.max())
  cumulative = np.asarray(jnp.cumsum(weights))
  assert (np.diff(cumulative) < 0).any(), 'the case is not met any more'
  # Thresholds at every plateau's edge, where a wrong step would show.
  uniform = jnp.asarray(cumulative[::97] / cumulative.max()) * (1 - 1e-7)
  draw = jax.jit(jax.vmap(lambda u: sampler.draw(weights, u)))
  tokens = np.asarray(draw(uniform))
  assert np.isfinite(logp[tokens]).all()
  exact = np.cumsum(np.asarray(weights, np.float64))
  target = np.asarray(uniform, np.float64) * exact[-1]
  allowed = np.asarray(weights)[tokens] + 2e-6 * exact[-1]
  assert (np.abs(exact[tokens] - target) <= allowed).all()


@pytest.fixture(scope='module')
def decoder():
  model = Transformer(Architecture(vocab_size=17, kv_heads=2))
  prompts = Prompts(
    tokens=jax.random.randint(jax.random.key(1), (6, 5), 0, 17),
    length=jnp.array([1, 2, 3, 4, 5, 5]),
    index=jnp.arange(6) + 100,
  )
  params = model.init(jax.random.key(0), prompts.tokens, prompts.length)
  # Sharper than at initialisation, so that an error would show.
  params = jax.tree.map(lambda x: 2 * x, params['params'])
  return model, params, prompts


@pytest.mark.parametrize('temperature', [1.0, 0.6])
def test_behavior_logp_equals_teacher_forcing(decoder, temperature):
  model, params, prompts = decoder
  responses = sampler.sample_groups(
    model,
    params,
    prompts,
    jax.random.key(2),
    group_size=3,
    max_tokens=37,
    sampling=Sampling(temperature, stop_ids=(4,)),
  )
  shape = responses.length.shape
  batch = GroupBatch(
    prompts=prompts,
    responses=responses,
    rewards=jnp.zeros(shape),
    origin=jnp.full(shape, SELF),
    member_mask=jnp.ones(shape, bool),
  )
  logp, _ = forward.token_logprobs(
    model, params, batch, chunk=16, temperature=temperature
  )
  assert 1 < len(np.unique(responses.length))
  np.testing.assert_allclose(logp, responses.behavior_logp, atol=1e-4)


def test_the_loop_copies_no_parameters(decoder):
  """Prefill cuts each layer out of the stacked ones, and shows what that is."""
  model, params, prompts = decoder
  run = functools.partial(
    sampler.sample_groups, model, group_size=3, max_tokens=12
  )
  compiled = jax.jit(run).lower(params, prompts, jax.random.key(2)).compile()
  _, width, mlp_width = params['blocks']['gate']['kernel'].shape
  made = [
    line
    for line in compiled.as_text().splitlines()
    if re.search(rf'= f32\[(1,)?{width},{mlp_width}\]', line)
  ]
  assert any('prefill/while/body' in line for line in made)
  assert not any('decode/while/body' in line for line in made)


def test_permuted_rows_of_a_decoder_give_identical_tokens(decoder):
  model, params, prompts = decoder

  @jax.jit
  def run(prompts):
    return sampler.sample_groups(
      model,
      params,
      prompts,
      jax.random.key(2),
      group_size=3,
      max_tokens=12,
      sampling=Sampling(stop_ids=(4,)),
    )

  order = np.array([5, 2, 0, 4, 1, 3])
  permuted = run(jax.tree.map(lambda x: x[order], prompts))
  chex.assert_trees_all_equal(run(prompts).tokens[order], permuted.tokens)


def run_with(monkeypatch, fewest, function):
  """A fresh trace of the loop with another ladder of sizes."""
  monkeypatch.setattr(sampler, 'FEWEST_ROWS', fewest)
  return jax.jit(lambda: function())()


@pytest.mark.parametrize('seed', range(3))
def test_rows_that_leave_change_nothing(monkeypatch, seed):
  """Against the loop that keeps every row to the end."""

  def sample_many():
    return sampler.sample_groups(
      Table(),
      table(),
      prompts_of(0, 1, 2, 4),
      jax.random.key(seed),
      group_size=8,
      max_tokens=40,
      sampling=Sampling(stop_ids=(STOP,)),
    )

  assert sampler.sizes(32) == (32, 16, 8)
  leaving = run_with(monkeypatch, 1, sample_many)
  assert sampler.sizes(32) == (32, 16, 8, 4, 2, 1)
  staying = run_with(monkeypatch, 64, sample_many)
  assert sampler.sizes(32) == (32,)
  chex.assert_trees_all_equal(leaving, staying)
  assert len(np.unique(leaving.length)) > 8  # They leave at many steps.


def test_rows_of_a_decoder_that_leave_keep_their_log_probabilities(
  decoder, monkeypatch
):
  """Batches of another size round differently: the same to 1e-5."""
  monkeypatch.setattr(attention, 'BLOCK', 8)  # The cache has several.
  model, params, prompts = decoder

  def sample_many():
    return sampler.sample_groups(
      model,
      params,
      prompts,
      jax.random.key(5),
      group_size=4,
      max_tokens=30,
      sampling=Sampling(stop_ids=(4, 5)),
    )

  leaving = run_with(monkeypatch, 2, sample_many)
  staying = run_with(monkeypatch, 64, sample_many)
  np.testing.assert_array_equal(leaving.tokens, staying.tokens)
  np.testing.assert_allclose(
    leaving.behavior_logp, staying.behavior_logp, atol=1e-5
  )
  assert len(np.unique(leaving.length)) > 5


@pytest.mark.parametrize(
  'settings', [{'group_size': 0}, {'max_tokens': 0}, {'temperature': -1.0}]
)
def test_impossible_settings_are_refused(settings):
  with pytest.raises(ValueError, match=next(iter(settings))):
    sample(prompts_of(0), **settings)


WIDE = """
import sys
import jax, numpy as np
from gft_jax.batch import Prompts
from gft_jax.config import Architecture
from gft_jax.models.transformer import Transformer
from gft_jax.rollout import Sampling, sample_groups

model = Transformer(Architecture(vocab_size=64, width=8, layers=1, mlp_width=8))
one = np.ones((1, 1), np.int32)
params = model.init(jax.random.key(0), one, one[0])['params']
params = jax.tree.map(lambda x: x.astype('float32'), params)
prompts = ([[3, 4, 5], [6, 7, 0]], [3, 2], [0, 1], [9, 5])
prompts = Prompts(*(np.array(x, np.int32) for x in prompts))
sampling = Sampling(
  top_k=9, top_p=0.9, min_p=0.01, stop_ids=(1,), stop_sequences=((2, 3),)
)
found = sample_groups(
  model, params, prompts, jax.random.key(1), group_size=12, max_tokens=9,
  sampling=sampling,
)
assert jax.config.jax_enable_x64 == (sys.argv[1] == '1')
print(found.tokens.dtype, found.length.dtype, found.behavior_logp.dtype)
print(found.tokens.tolist(), found.length.tolist())
"""


@pytest.mark.slow
def test_the_sampler_under_x64_draws_the_same_tokens():
  """As a user's own process may have it, for other work."""
  outputs = [
    subprocess.run(
      [sys.executable, '-c', WIDE, wide],
      env={**os.environ, 'JAX_ENABLE_X64': wide},
      capture_output=True,
      text=True,
      check=False,
    )
    for wide in '01'
  ]
  assert [done.returncode for done in outputs] == [0, 0], outputs[1].stderr
  assert outputs[0].stdout == outputs[1].stdout
  assert outputs[0].stdout.startswith('int32 int32 float32')
