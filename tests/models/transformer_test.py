"""One model, two entrances: whatever way a token enters, the same state."""

import dataclasses
import functools

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
LENGTH = np.array([4, 2])


@functools.cache
def random_params(architecture=TINY):
  """Every parameter random, also norms and biases, which begin constant."""
  model = Transformer(architecture)
  one = jnp.ones((1, 1), jnp.int32)
  params = jax.jit(model.init)(jax.random.key(0), one, one[0])['params']
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return tree.unflatten(
    [x + 0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
  )


def tokens_of(seed, *shape):
  return np.asarray(jax.random.randint(jax.random.key(seed), shape, 0, 23))


def call(model, params, *arguments, method):
  return model.apply({'params': params}, *arguments, method=method)


def prefill(model, params, tokens, length):
  return call(model, params, tokens, length, method='prefill')


def respond(model, params, prompts, length, responses):
  prefix = prefill(model, params, prompts, length)
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
  hidden = prefill(model, params, np.stack(rows), np.array(lengths)).hidden
  return hidden.reshape(batch, group, count, -1)


def test_shared_prefix_equals_repeated_prompt_in_value_and_gradient():
  model, params = Transformer(TINY), random_params()
  prompts = tokens_of(2, BATCH, PROMPT)
  responses = tokens_of(3, BATCH, GROUP, TOKENS)
  weights = jax.random.normal(
    jax.random.key(4), (BATCH, GROUP, TOKENS, TINY.width)
  )

  def loss(params, forward):
    hidden = forward(model, params, prompts, LENGTH, responses)
    return (hidden * weights).mean(), hidden

  run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  shared_gradient, shared = run(params, respond)
  repeated_gradient, oracle = run(params, repeated)
  np.testing.assert_allclose(shared, oracle, atol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5),
    shared_gradient,
    repeated_gradient,
  )


@pytest.mark.parametrize('block', [3, 64])
def test_decoding_equals_responding(block, monkeypatch):
  monkeypatch.setattr(attention, 'BLOCK', block)
  model, params = Transformer(TINY), random_params()
  prompts = tokens_of(2, BATCH, PROMPT)
  responses = tokens_of(3, BATCH, GROUP, TOKENS)

  @jax.jit
  def decode_all(params):
    prefix = prefill(model, params, prompts, LENGTH)
    cache = call(model, params, prefix, GROUP, TOKENS, method='empty_cache')
    states = []
    for t in range(TOKENS):
      hidden, cache = call(
        model,
        params,
        prefix,
        cache,
        responses[:, :, t],
        jnp.int32(t),
        method='decode',
      )
      states.append(hidden)
    return jnp.stack(states, axis=2)

  # State t of a response predicts token t; state t of a step token t + 1.
  longer = np.concatenate([responses, responses[..., :1]], axis=-1)
  expected = respond(model, params, prompts, LENGTH, longer)[:, :, 1:]
  np.testing.assert_allclose(decode_all(params), expected, atol=1e-5)


def test_the_cache_is_updated_in_place():
  model, params = Transformer(TINY), random_params()
  prefix = prefill(model, params, tokens_of(2, 1, 2), np.array([2]))
  cache = call(model, params, prefix, 2, 4096, method='empty_cache')
  step = jax.jit(
    functools.partial(call, model, method='decode'), donate_argnums=2
  )
  compiled = step.lower(
    params, prefix, cache, jnp.zeros((1, 2), jnp.int32), jnp.int32(0)
  ).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < cache.keys.nbytes // 4


def test_a_state_depends_on_prompt_and_own_past_only():
  # Every position holds a token of its own, so that the gradient towards a
  # row of the embedding is the gradient towards a position.
  model = Transformer(TINY)
  prompts, length = np.array([[0, 1, 2]]), np.array([2])
  responses = np.arange(3, 11).reshape(1, 2, 4)

  @jax.jit
  @jax.jacrev
  def jacobian(embedding):
    params = random_params() | {'embedding': embedding}
    # The square of the middle: a norm makes plain sums nearly constant.
    return respond(model, params, prompts, length, responses)[..., 0]

  reached = np.abs(jacobian(random_params()['embedding'])[0]).sum(-1) > 0
  for g in range(2):
    for t in range(4):
      expected = {0, 1} | set(responses[0, g, :t])
      assert set(np.flatnonzero(reached[g, t])) == expected


def test_padding_does_not_matter():
  model, params = Transformer(TINY), random_params()
  prompts = tokens_of(2, BATCH, PROMPT)
  responses = tokens_of(3, BATCH, GROUP, TOKENS)
  plain = respond(model, params, prompts, LENGTH, responses)
  noisy = np.where(np.arange(PROMPT) < LENGTH[:, None], prompts, 22)
  wider = np.pad(noisy, ((0, 0), (0, 3)), constant_values=7)
  padded = np.pad(responses, ((0, 0), (0, 0), (0, 2)), constant_values=9)
  np.testing.assert_allclose(
    respond(model, params, wider, LENGTH, padded)[:, :, :TOKENS],
    plain,
    atol=1e-6,
  )


def test_a_response_of_one_token_is_predicted_by_the_prompt():
  model, params = Transformer(TINY), random_params()
  prefix = prefill(model, params, tokens_of(2, BATCH, PROMPT), LENGTH)
  hidden = call(
    model, params, prefix, tokens_of(3, BATCH, GROUP, 1), method='respond'
  )
  for g in range(GROUP):
    np.testing.assert_array_equal(hidden[:, g, 0], prefix.hidden)


def test_remat_changes_memory_and_not_gradients():
  architecture = dataclasses.replace(TINY, layers=6, mlp_width=256)
  params = random_params(architecture)
  prompts = tokens_of(2, BATCH, 32)
  responses = tokens_of(3, BATCH, GROUP, 32)

  def gradient(remat):
    model = Transformer(architecture, remat=remat)

    @jax.jit
    @jax.grad
    def run(params):
      return respond(model, params, prompts, np.array([32, 9]), responses)[
        ..., 0
      ].mean()

    compiled = run.lower(params).compile()
    return compiled(params), compiled.memory_analysis().temp_size_in_bytes

  plain, most = gradient('none')
  for remat, share in (('dots', 0.9), ('full', 0.5)):
    other, memory = gradient(remat)
    assert memory < share * most
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-6), other, plain
    )


def test_bfloat16_is_close_and_keeps_float32_parameters():
  # bfloat16 keeps 8 bits; states are of size 1 and pass two layers.
  params = random_params()
  prompts = tokens_of(2, BATCH, PROMPT)
  responses = tokens_of(3, BATCH, GROUP, TOKENS)
  exact, rounded = (
    respond(Transformer(TINY, dtype), params, prompts, LENGTH, responses)
    for dtype in ('float32', 'bfloat16')
  )
  assert rounded.dtype == jnp.bfloat16
  error = np.abs(np.asarray(rounded, np.float32) - exact)
  assert 0 < error.max() < 0.1


def test_tied_head_is_the_embedding_transposed():
  model = Transformer(dataclasses.replace(TINY, tied_head=True), 'bfloat16')
  params = random_params(model.architecture)
  assert 'head' not in params
  head = model.apply({'params': params}, method='head')
  np.testing.assert_array_equal(
    head, params['embedding'].T.astype(jnp.bfloat16)
  )


@pytest.mark.parametrize('layers', [2, 16])
def test_a_fresh_model_keeps_the_size_of_its_stream(layers):
  # Updates are scaled by 1 / sqrt(2L): more layers add no more variance, and
  # the first prediction is close to uniform.
  architecture = dataclasses.replace(
    TINY, layers=layers, width=64, mlp_width=128, qkv_bias=False
  )
  model = Transformer(architecture, param_dtype='bfloat16')
  prompts, length = tokens_of(2, BATCH, PROMPT), LENGTH
  params = jax.jit(model.init)(jax.random.key(0), prompts, length)['params']
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('bfloat16')}
  prefix = prefill(model, params, prompts, length)
  logits = prefix.hidden @ model.apply({'params': params}, method='head')
  assert float(jnp.abs(jax.nn.log_softmax(logits) + np.log(23)).max()) < 1.0
  down = params['blocks']['down']['kernel'].astype(jnp.float32)
  assert float(down.std()) == pytest.approx((2 * layers * 128) ** -0.5, rel=0.1)
