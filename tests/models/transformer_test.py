"""One model, two entrances: whatever way a token enters, the same state."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.config import Architecture
from gft_jax.models import attention
from gft_jax.models.transformer import Transformer

TINY = Architecture(
  vocab_size=23,
  width=16,
  layers=2,
  heads=4,
  kv_heads=2,
  head_size=6,
  mlp_width=20,
  qkv_bias=True,
)
BATCH, GROUP, PROMPT, TOKENS = 2, 2, 4, 5
LENGTH = np.array([4, 2], np.int32)


def tokens_of(seed, *shape):
  return np.random.default_rng(seed).integers(0, 23, shape, np.int32)


PROMPTS = tokens_of(2, BATCH, PROMPT)
RESPONSES = tokens_of(3, BATCH, GROUP, TOKENS)


def random_params(architecture=TINY):
  """Every parameter random, also norms and biases, which begin constant."""
  one = jnp.ones((1, 1), jnp.int32)
  shapes = jax.eval_shape(
    Transformer(architecture).init, jax.random.key(0), one, one[0]
  )['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0.0, 0.3, x.shape).astype(np.float32), shapes
  )


def call(model, params, *arguments, method):
  return model.apply({'params': params}, *arguments, method=method)


@functools.partial(jax.jit, static_argnums=0)
def respond(model, params, prompts, length, responses):
  """[B, G, T, D] through the two entrances."""
  prefix = call(model, params, prompts, length, method='prefill')
  return call(model, params, prefix, responses, method='respond')


def repeated(model, params, prompts, length, responses):
  """[B, G, T, D] the plain way: a full sequence per member and per token."""
  batch, group, count = responses.shape
  rows, lengths = [], []
  for b in range(batch):
    for g in range(group):
      joined = np.zeros(prompts.shape[1] + count, np.int32)
      joined[: length[b]] = prompts[b, : length[b]]
      joined[length[b] : length[b] + count] = responses[b, g]
      rows += [joined] * count
      lengths += [length[b] + t for t in range(count)]
  prefix = call(
    model, params, np.stack(rows), np.array(lengths), method='prefill'
  )
  return prefix.hidden.reshape(batch, group, count, -1)


@functools.cache
def compiled_gradient(forward, remat='none'):
  """A random loss of all states: its compiled gradient in the parameters."""
  model = Transformer(TINY, remat=remat)
  weights = np.random.default_rng(4).normal(
    size=(BATCH, GROUP, TOKENS, TINY.width)
  )

  @functools.partial(jax.grad, has_aux=True)
  def gradient(params):
    hidden = forward(model, params, PROMPTS, LENGTH, RESPONSES)
    return (hidden * weights).sum() / hidden[..., 0].size, hidden

  return jax.jit(gradient).lower(random_params()).compile()


def test_shared_prefix_equals_repeated_prompt_in_value_and_gradient():
  params = random_params()
  shared = compiled_gradient(respond)(params)
  oracle = compiled_gradient(repeated)(params)
  chex.assert_trees_all_close(shared, oracle, atol=1e-5)
  # The comparison is worth something: every parameter has a gradient.
  for leaf in jax.tree.leaves(shared[0]['blocks']):
    assert float(jnp.abs(leaf).max()) > 1e-4


@pytest.mark.parametrize(
  'remat', [pytest.param('dots', marks=pytest.mark.slow), 'full']
)
def test_remat_saves_memory_and_changes_no_gradient(remat):
  plain, saving = (compiled_gradient(respond, r) for r in ('none', remat))
  params = random_params()
  chex.assert_trees_all_close(saving(params), plain(params), atol=1e-6)
  least, most = (
    f.memory_analysis().temp_size_in_bytes for f in (saving, plain)
  )
  assert least < most


# bfloat16 as in test_bfloat16_is_close: both ways round, in another order.
@pytest.mark.parametrize(
  ('dtype', 'atol'), [('float32', 1e-5), ('bfloat16', 0.03)]
)
def test_decoding_equals_responding(dtype, atol, monkeypatch):
  monkeypatch.setattr(attention, 'BLOCK', 3)  # TOKENS is no multiple of it.
  model = Transformer(TINY, dtype)

  @jax.jit
  def decode_all(params):
    prefix = call(model, params, PROMPTS, LENGTH, method='prefill')
    cache = call(model, params, prefix, GROUP, TOKENS, method='empty_cache')

    rows = jnp.arange(len(PROMPTS) * GROUP)

    def advance(cache, step):
      tokens = jnp.asarray(RESPONSES)[:, :, step].ravel()
      hidden, cache = call(
        model, params, prefix, cache, tokens, rows, step, method='decode'
      )
      return cache, hidden.reshape(len(PROMPTS), GROUP, -1)

    return jax.lax.scan(advance, cache, jnp.arange(TOKENS))[1]

  params = random_params()
  expected = respond(model, params, PROMPTS, LENGTH, RESPONSES)
  # State t of a response predicts token t; that of step t predicts t + 1.
  decoded = jnp.moveaxis(decode_all(params), 0, 2)
  assert decoded.dtype == expected.dtype == dtype
  np.testing.assert_allclose(
    decoded[:, :, :-1].astype('float32'),
    expected[:, :, 1:].astype('float32'),
    atol=atol,
  )


def test_the_cache_holds_parameters_as_they_are_computed_with():
  """Once, so that no step casts them; the scales of norms stay as they are."""
  model = Transformer(TINY, 'bfloat16')

  def layers(params):
    prefix = call(model, params, PROMPTS, LENGTH, method='prefill')
    return call(
      model, params, prefix, GROUP, TOKENS, method='empty_cache'
    ).layers

  found = jax.eval_shape(layers, random_params())
  assert len(found) == TINY.layers
  for layer in found:
    for name, leaves in layer.params.items():
      dtype = 'float32' if name.endswith('_norm') else 'bfloat16'
      assert {x.dtype for x in leaves.values()} == {jnp.dtype(dtype)}, name


def test_the_cache_is_updated_in_place():
  model, params = Transformer(TINY), random_params()

  def shapes(params):
    prefix = call(model, params, PROMPTS, LENGTH, method='prefill')
    return prefix, call(
      model, params, prefix, GROUP, 4096, method='empty_cache'
    )

  prefix, cache = jax.eval_shape(shapes, params)
  decode = functools.partial(call, model, method='decode')
  tokens = jnp.asarray(RESPONSES)[..., 0].ravel()
  compiled = (
    jax.jit(decode, donate_argnums=2)
    .lower(params, prefix, cache, tokens, jnp.arange(tokens.size), jnp.int32(0))
    .compile()
  )
  keys, _ = cache.layers[0].own
  one_copy = keys.size * keys.dtype.itemsize
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < one_copy // 2
  assert memory.alias_size_in_bytes >= 2 * TINY.layers * one_copy


def test_a_state_depends_on_prompt_and_own_past_only():
  # Every position holds a token of its own, so that the gradient towards a
  # row of the embedding is the gradient towards a position.
  prompts, length = np.array([[0, 1, 2]]), np.array([2])
  responses = np.arange(3, 11).reshape(1, 2, 4)
  params = random_params()

  @jax.jit
  @jax.jacrev
  def jacobian(embedding):
    moved = params | {'embedding': embedding}
    hidden = respond(Transformer(TINY), moved, prompts, length, responses)
    return hidden[..., 0]

  reached = np.abs(jacobian(params['embedding'])[0]).sum(-1) > 0
  for g in range(2):
    for t in range(4):
      expected = {0, 1} | set(responses[0, g, :t])
      assert set(np.flatnonzero(reached[g, t])) == expected


def test_padding_does_not_matter():
  model, params = Transformer(TINY), random_params()
  real = np.arange(PROMPT) < LENGTH[:, None]
  noisy = np.pad(
    np.where(real, PROMPTS, 22), ((0, 0), (0, 3)), constant_values=7
  )
  longer = np.pad(RESPONSES, ((0, 0), (0, 0), (0, 2)), constant_values=9)
  np.testing.assert_allclose(
    respond(model, params, noisy, LENGTH, longer)[:, :, :TOKENS],
    respond(model, params, PROMPTS, LENGTH, RESPONSES),
    atol=1e-6,
  )


def test_a_response_of_one_token_is_predicted_by_the_prompt():
  model, params = Transformer(TINY), random_params()
  one = respond(model, params, PROMPTS, LENGTH, RESPONSES[..., :1])
  all_ = respond(model, params, PROMPTS, LENGTH, RESPONSES)
  np.testing.assert_allclose(one, all_[:, :, :1], atol=1e-6)


def test_bfloat16_is_close():
  # bfloat16 keeps 8 bits: the largest state, 0.9, is off by up to 0.002 when
  # rounded once. Two layers made 0.007 of it.
  params = random_params()
  exact, rounded = (
    respond(Transformer(TINY, dtype), params, PROMPTS, LENGTH, RESPONSES)
    for dtype in ('float32', 'bfloat16')
  )
  assert rounded.dtype == jnp.bfloat16
  error = np.abs(np.asarray(rounded, np.float32) - np.asarray(exact)).max()
  assert 0 < error < 0.03


def test_tied_head_is_the_embedding_transposed():
  model = Transformer(dataclasses.replace(TINY, tied_head=True), 'bfloat16')
  params = random_params(model.architecture)
  assert 'head' not in params
  head = model.apply({'params': params}, method='head')
  np.testing.assert_array_equal(
    head, params['embedding'].T.astype(jnp.bfloat16)
  )


def test_a_token_outside_the_vocabulary_is_loud():
  params = random_params()
  outside = np.full_like(PROMPTS, TINY.vocab_size)
  hidden = respond(Transformer(TINY), params, outside, LENGTH, RESPONSES)
  assert np.isnan(hidden).all()


def test_a_fresh_model_is_nearly_uniform_and_scales_with_depth():
  architecture = dataclasses.replace(TINY, layers=8, width=64, mlp_width=128)
  model = Transformer(architecture, param_dtype='bfloat16')
  prefix, variables = jax.jit(model.init_with_output)(
    jax.random.key(0), PROMPTS, LENGTH
  )
  params = variables['params']
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('bfloat16')}
  deviation = {
    name: np.asarray(params['blocks'][name]['kernel'], np.float32).std()
    for name in ('up', 'down', 'output')
  }
  # 1 / sqrt(fan in); what adds to the stream another 1 / sqrt(2 L).
  assert deviation['up'] == pytest.approx(64**-0.5, rel=0.1)
  assert deviation['down'] == pytest.approx((16 * 128) ** -0.5, rel=0.1)
  assert deviation['output'] == pytest.approx((16 * 24) ** -0.5, rel=0.1)
  logits = prefix.hidden @ model.apply(variables, method='head')
  logp = jax.nn.log_softmax(logits)
  assert float(jnp.abs(logp + np.log(23)).max()) < 1.0
