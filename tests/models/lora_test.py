"""Adapters against the full weights that they stand for."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from gft_jax.batch import SELF, GroupBatch, Prompts, Responses
from gft_jax.config import PROJECTIONS, Architecture, LoraConfig, LossConfig
from gft_jax.models import lora
from gft_jax.models.transformer import Transformer
from gft_jax.training import objectives, train_step

# No two axes of a matrix are equal, and none equals the rank.
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
RANK, ALPHA = 3, 12.0
RATE = 1e3  # A gradient is read from the step that it makes.
B, G, P, T = 2, 2, 4, 4


@pytest.fixture(scope='module')
def plain():
  return Transformer(TINY)


@pytest.fixture(scope='module')
def model(plain):
  return plain.clone(lora=LoraConfig(rank=RANK, alpha=ALPHA))


def randomly(seed, tree):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), tree
  )


@pytest.fixture(scope='module')
def frozen(plain):
  one = jnp.ones((1, 1), jnp.int32)
  return randomly(
    0, jax.eval_shape(plain.init, jax.random.key(0), one, one[0])['params']
  )


@pytest.fixture(scope='module')
def fresh(model):
  return lora.create(model, jax.random.key(0))


@pytest.fixture(scope='module')
def adapters(fresh):
  """Both factors random, as after training."""
  return randomly(1, fresh)


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(2)
  return GroupBatch(
    prompts=Prompts(
      tokens=jnp.asarray(rng.integers(0, 23, (B, P)), jnp.int32),
      length=jnp.array([4, 2]),
      index=jnp.arange(B),
    ),
    responses=Responses(
      tokens=jnp.asarray(rng.integers(0, 23, (B, G, T)), jnp.int32),
      length=jnp.array([[4, 2], [3, 4]]),
      behavior_logp=jnp.zeros((B, G, T)),
    ),
    rewards=jnp.array([[1.0, 0.0], [0.0, 1.0]]),
    origin=jnp.full((B, G), SELF),
    member_mask=jnp.ones((B, G), bool),
  )


@functools.partial(jax.jit, static_argnums=0)
def entrances(model, params, batch):
  """States of all three: prefill, respond and decode."""
  call = functools.partial(model.apply, {'params': params})
  prefix = call(batch.prompts.tokens, batch.prompts.length, method='prefill')
  states = call(prefix, batch.responses.tokens, method='respond')
  cache = call(prefix, G, T, method='empty_cache')
  first = batch.responses.tokens[:, :, 0].ravel()
  rows = jnp.arange(B * G)
  decoded, _ = call(prefix, cache, first, rows, 0, method='decode')
  return prefix.hidden, states, decoded


def test_fresh_adapters_change_no_bit(plain, model, frozen, fresh, batch):
  before = entrances(plain, frozen, batch)
  after = entrances(model, lora.join(frozen, fresh), batch)
  chex.assert_trees_all_equal(before, after)


def test_fresh_adapters_are_as_in_peft(fresh):
  """A uniform within 1 / sqrt(fan in), B zero."""
  leaves = traverse_util.flatten_dict(fresh['blocks'], sep='/')
  assert set(leaves) == {
    f'{name}/{factor}' for name in PROJECTIONS for factor in lora.NAMES
  }
  for name, inputs in (('query', 16), ('output', 24), ('down', 20)):
    a = np.asarray(leaves[f'{name}/lora_a'])
    assert 0.85 < np.abs(a).max() * inputs**0.5 <= 1
    assert not np.array_equal(a[0], a[1])  # Layers differ.
    assert not leaves[f'{name}/lora_b'].any()


@pytest.mark.parametrize('targets', [PROJECTIONS, ('query', 'down')])
def test_adapters_are_their_merged_weights(
  plain, frozen, adapters, batch, targets
):
  model = plain.clone(lora=LoraConfig(RANK, ALPHA, targets))
  trained = {'blocks': {name: adapters['blocks'][name] for name in targets}}
  merged = lora.merge(model, frozen, trained)
  chex.assert_trees_all_close(
    entrances(model, lora.join(frozen, trained), batch),
    entrances(plain, merged, batch),
    atol=1e-5,
  )
  moved = {
    path
    for path, leaf in traverse_util.flatten_dict(merged, sep='/').items()
    if not np.array_equal(
      leaf, traverse_util.flatten_dict(frozen, sep='/')[path]
    )
  }
  assert moved == {f'blocks/{name}/kernel' for name in targets}


def test_without_adapters_nothing_is_joined_or_merged(plain, frozen):
  assert lora.join(None, frozen) is frozen
  assert lora.merge(plain, None, frozen) is frozen


def step_of(model, micro_batches=1, **settings):
  return train_step.make_train_step(
    model,
    objectives.OBJECTIVES['gft'],
    LossConfig(chunk=7, **settings),
    micro_batches=micro_batches,
  )


def state_of(model, params):
  return train_step.create_state(model, params, optax.sgd(RATE))


def gradient_of(model, params, batch, reference, frozen, **settings):
  step = jax.jit(step_of(model, **settings))
  state, metrics, _ = step(state_of(model, params), batch, reference, frozen)
  gradient = jax.tree.map(lambda a, b: (a - b) / RATE, params, state.params)
  return gradient, metrics


@pytest.mark.slow
def test_the_gradient_is_that_of_the_merged_weights_by_the_chain_rule(
  plain, model, frozen, fresh, adapters, batch
):
  """W' = W + s A B: dA = s dW' B^T and dB = s A^T dW'."""
  settings = {'micro_batches': 2, 'kl': 'k3', 'kl_weight': 0.5}
  scale = ALPHA / RANK
  found, metrics = gradient_of(
    model, adapters, batch, fresh, frozen, **settings
  )
  merged = jax.tree.map(jnp.asarray, lora.merge(model, frozen, adapters))
  whole, expected_metrics = gradient_of(
    plain, merged, batch, frozen, None, **settings
  )
  np.testing.assert_allclose(
    metrics['loss'].value, expected_metrics['loss'].value, rtol=1e-5
  )
  for name in PROJECTIONS:
    gradient = whole['blocks'][name]['kernel']
    a, b = (adapters['blocks'][name][factor] for factor in lora.NAMES)
    for layer in range(TINY.layers):
      flat_a, flat_b = a[layer].reshape(-1, RANK), b[layer].reshape(RANK, -1)
      dw = gradient[layer].reshape(len(flat_a), -1)
      for factor, expected in (
        ('lora_a', scale * dw @ flat_b.T),
        ('lora_b', scale * flat_a.T @ dw),
      ):
        ours = found['blocks'][name][factor][layer]
        largest = np.abs(expected).max()
        assert largest > 1e-6
        np.testing.assert_allclose(
          ours, expected.reshape(ours.shape), atol=1e-4 * largest
        )


def made(compiled):
  """Shapes of the arrays that instructions of a program make."""
  lines = re.findall(r'= \w+\[([\d,]+)\]\S* ([\w-]+)\(', compiled.as_text())
  return {
    tuple(int(n) for n in shape.split(','))
    for shape, operation in lines
    if operation not in ('parameter', 'get-tuple-element', 'bitcast')
  }


def test_no_array_of_the_size_of_frozen_weights_is_made(
  plain, model, frozen, fresh, batch
):
  """No gradient, no moment, no copy: in the compiled program."""

  def compiled(model, params, frozen):
    state = train_step.create_state(model, params, optax.adamw(1e-3))
    step = jax.jit(step_of(model), donate_argnums=0)
    return step.lower(state, batch, None, frozen).compile()

  matrices = {
    leaf.shape
    for path, leaf in traverse_util.flatten_dict(frozen).items()
    if path[-1] in ('kernel', 'embedding', 'head')
  }
  ours, full = compiled(model, fresh, frozen), compiled(plain, frozen, None)
  assert made(full) >= matrices
  assert not made(ours) & matrices
  # Only what is trained is donated and returned.
  size = sum(x.nbytes for x in jax.tree.leaves(fresh))
  returned = ours.memory_analysis().output_size_in_bytes
  assert 3 * size <= returned < 3 * size + 2000  # beside them, metrics


def test_frozen_weights_may_be_bfloat16(frozen, batch):
  model = Transformer(TINY, 'bfloat16', 'bfloat16', lora=LoraConfig(rank=RANK))
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen)
  trained = lora.create(model, jax.random.key(0))
  assert {x.dtype.name for x in jax.tree.leaves(trained)} == {'float32'}
  gradient, metrics = gradient_of(model, trained, batch, None, half)
  assert {x.dtype.name for x in jax.tree.leaves(gradient)} == {'float32'}
  assert np.isfinite(metrics['loss'].value)
  for name in PROJECTIONS:  # While B is 0, A has no gradient.
    assert jnp.abs(gradient['blocks'][name]['lora_b']).max() > 0
    assert not gradient['blocks'][name]['lora_a'].any()
  merged = lora.merge(model, half, randomly(1, trained))
  assert {x.dtype.name for x in jax.tree.leaves(merged)} == {'bfloat16'}


def test_the_backward_pass_keeps_one_result_of_a_projection(
  plain, model, frozen, fresh
):
  """Not also that of its adapter: activations would take twice the memory."""
  tokens = jnp.zeros((2, 50), jnp.int32)

  def kept(model, params, frozen):
    def loss(params):
      variables = {'params': lora.join(frozen, params)}
      rows = (tokens, tokens, tokens)
      return model.apply(variables, *rows, method='packed').sum()

    scans = [
      equation
      for equation in jax.make_jaxpr(jax.grad(loss))(params).eqns
      if equation.primitive.name == 'scan'
    ]
    shapes = [v.aval.shape for scan in scans for v in scan.outvars]
    return shapes.count((TINY.layers, tokens.size, TINY.mlp_width))

  # Of the gate and of what it is multiplied with.
  assert kept(model, fresh, frozen) == kept(plain, frozen, None) == 2
