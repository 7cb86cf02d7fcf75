"""The TPU's kernel, interpreted, against attention without it."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.batch import GroupBatch, Prompts, Responses
from gft_jax.config import Architecture, MeshConfig
from gft_jax.models import attention, forward, splash, transformer
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh


def random(seed, *shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


@pytest.fixture
def on_tpu(monkeypatch):
  """The kernel runs on any device, interpreted; what has run is told."""
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
  run = set()

  def interpreted(name, kernel, *args):
    run.add(name)
    return kernel(*args, interpret=True)

  for name in ('attend_prompt', 'attend_response'):
    kernel = functools.partial(interpreted, name, getattr(splash, name))
    monkeypatch.setattr(splash, name, kernel)
  return run


def value_and_gradients(attend, weights, *arrays):
  weights = weights.astype(arrays[0].dtype)

  def loss(*arrays):
    out = attend(*arrays)
    return (out * weights).sum(), out

  run = jax.grad(loss, argnums=tuple(range(len(arrays))), has_aux=True)
  return jax.jit(run)(*arrays)


@pytest.mark.parametrize(
  ('prompt', 'tokens', 'block', 'kv_heads', 'dtype', 'atol'),
  [
    (100, 150, 512, 2, 'float32', 2e-5),
    (70, 300, 128, 2, 'float32', 2e-5),
    (300, 129, 256, 4, 'float32', 2e-5),
    (1, 129, 512, 1, 'float32', 2e-5),
    (70, 300, 128, 2, 'bfloat16', 0.15),
  ],
)
def test_responses_equal_those_in_blocks_of_queries(
  prompt, tokens, block, kv_heads, dtype, atol, monkeypatch
):
  """In value and gradient; no size is a multiple of a block."""
  monkeypatch.setattr(splash, 'BLOCK', block)
  query, weights = (random(i, 2, 3, tokens, 4, 16) for i in (0, 5))
  own = tuple(random(i, 2, 3, tokens, kv_heads, 16) for i in (1, 2))
  prefix = tuple(random(i, 2, prompt, kv_heads, 16) for i in (3, 4))
  query, own, prefix = jax.tree.map(
    lambda x: x.astype(dtype), (query, own, prefix)
  )
  length = jnp.array([prompt, min(prompt, 2)])

  def with_kernel(query, own, prefix):
    return splash.attend_response(query, own, prefix, length, interpret=True)

  def without(query, own, prefix):
    return attention.attend_response(query, own, prefix, length)

  chex.assert_trees_all_close(
    value_and_gradients(with_kernel, weights, query, own, prefix),
    value_and_gradients(without, weights, query, own, prefix),
    atol=atol,
  )


@pytest.mark.parametrize(('tokens', 'block'), [(200, 512), (300, 128)])
def test_packed_rows_equal_those_in_blocks_of_queries(
  tokens, block, monkeypatch
):
  monkeypatch.setattr(splash, 'BLOCK', block)
  query, weights = (random(i, 2, tokens, 4, 16) for i in (0, 5))
  key, value = (random(i, 2, tokens, 2, 16) for i in (1, 2))
  at = jnp.arange(tokens)
  segments = jnp.stack([(at > 20) + 0 + (at > 150), at // 140])

  def with_kernel(query, key, value):
    return splash.attend_prompt(query, key, value, segments, interpret=True)

  def without(query, key, value):
    return attention.attend_prompt(query, key, value, segments)

  chex.assert_trees_all_close(
    value_and_gradients(with_kernel, weights, query, key, value),
    value_and_gradients(without, weights, query, key, value),
    atol=2e-5,
  )


@pytest.mark.parametrize(
  ('size', 'block'),
  [(1, 128), (129, 256), (512, 512), (513, 384), (2047, 512), (3071, 512)],
)
def test_blocks_cover_a_sequence_with_little_more(size, block):
  assert splash._block(size) == block


def test_the_kernel_serves_long_sequences_of_whole_key_heads(monkeypatch):
  short, long = jnp.zeros((2, 128, 4, 8)), jnp.zeros((2, 129, 4, 8))
  serves = attention._splash_serves
  assert not serves(long, long)
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
  assert serves(long, long)
  assert not serves(short, short)
  mesh = make_mesh(MeshConfig(tensor=4))
  with jax.set_mesh(mesh):
    assert serves(long, long)
    assert not serves(long, long[:, :, :2])  # two key heads on four devices


def test_the_platform_is_that_of_the_mesh():
  assert sharding.platform() == 'cpu'
  devices = jax.sharding.AbstractDevice('TPU v5', 1, 'tpu')
  mesh = jax.sharding.AbstractMesh(
    (1, 1, 1), ('data', 'fsdp', 'tensor'), abstract_device=devices
  )
  with jax.sharding.use_abstract_mesh(mesh):
    assert sharding.platform() == 'tpu'


P, G, T = 140, 2, 150


@pytest.mark.parametrize(
  ('shape', 'remat'),
  [
    (MeshConfig(), 'none'),
    (MeshConfig(fsdp=4), 'full'),
    (MeshConfig(data=2, fsdp=2, tensor=2), 'dots'),
  ],
)
def test_a_model_is_the_same_with_the_kernel_on_any_mesh(shape, remat, request):
  """Hidden states and gradients, each device with its prompts and heads."""
  model = transformer.Transformer(
    Architecture(
      vocab_size=32, width=16, heads=4, kv_heads=2, head_size=8, mlp_width=16
    ),
    remat=remat,
  )
  draw = np.random.default_rng(0)
  length = jnp.array([P, 3, 70, 139])
  batch = GroupBatch(
    prompts=Prompts(jnp.array(draw.integers(32, size=(4, P))), length, length),
    responses=Responses(
      jnp.array(draw.integers(32, size=(4, G, T))),
      jnp.full((4, G), T),
      jnp.ones((4, G, T)),
    ),
    rewards=jnp.zeros((4, G)),
    origin=jnp.zeros((4, G), jnp.int32),
    member_mask=jnp.ones((4, G), bool),
  )
  params = model.init(jax.random.key(0), batch.prompts.tokens, length)['params']
  weights = random(1, 4, G, T, 16) / 100

  def results(mesh):
    def loss(params, batch):
      hidden, _ = forward.response_states(model, params, batch)
      return (hidden * weights).sum(), hidden

    with jax.set_mesh(mesh):
      return jax.jit(jax.grad(loss, has_aux=True))(
        jax.device_put(params, sharding.parameter_shardings(params, mesh)),
        jax.device_put(batch, sharding.batch_sharding(mesh)),
      )

  expected = jax.device_get(results(make_mesh(MeshConfig())))
  run = request.getfixturevalue('on_tpu')
  ours = jax.device_get(results(make_mesh(shape)))
  chex.assert_trees_all_close(ours, expected, rtol=1e-4, atol=5e-5)
  assert run == {'attend_prompt', 'attend_response'}


def test_no_array_of_all_queries_by_all_keys():
  tokens, prompt = 4096, 1024
  query = jax.ShapeDtypeStruct((1, 1, tokens, 2, 64), jnp.float32)
  own = (jax.ShapeDtypeStruct((1, 1, tokens, 1, 64), jnp.float32),) * 2
  prefix = (jax.ShapeDtypeStruct((1, prompt, 1, 64), jnp.float32),) * 2
  length = jax.ShapeDtypeStruct((1,), jnp.int32)

  def loss(*arrays):
    return splash.attend_response(*arrays).sum()

  program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))
  text = str(program(query, own, prefix, length))
  sizes = [
    np.prod([int(n) for n in shape.split(',')], dtype=np.int64)
    for shape in re.findall(r'(?:f32|i32|bool)\[([\d,]+)\]', text)
  ]
  # Segment ids and log-sum-exp have 128 lanes.
  assert max(sizes) == 2 * tokens * 128
