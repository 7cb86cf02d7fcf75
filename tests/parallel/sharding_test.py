import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal

from gft_jax.config import Architecture, ConfigError, LoraConfig, MeshConfig
from gft_jax.models import reward_model
from gft_jax.models.transformer import Transformer
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh, rollout_mesh


def test_parameters_are_laid_out_anew_by_the_devices():
  """And no device ever holds a whole matrix that both layouts split."""
  mesh = make_mesh(MeshConfig(fsdp=8))
  other = rollout_mesh(mesh, MeshConfig(fsdp=8, rollout_tensor=4))
  matrix = jnp.arange(2 * 32 * 64.0).reshape(2, 32, 64)
  params = {'up': {'kernel': matrix}}
  params = jax.device_put(params, sharding.parameter_shardings(params, mesh))
  move = jax.jit(lambda params: sharding.lay_out(params, other))
  moved = move(params)['up']['kernel']
  assert moved.sharding.spec == PartitionSpec(None, None, 'tensor')
  assert_array_equal(moved, matrix)
  text = move.lower(params).compile().as_text()
  assert re.search('all-to-all', text) and re.search('all-gather', text)
  assert not re.search('infeed|outfeed|host', text.replace('hostname', ''))
  sizes = re.findall(r'f32\[([\d,]+)\]', text)
  largest = max(np.prod([int(n) for n in size.split(',')]) for size in sizes)
  assert largest == matrix.size // 4


def test_a_layers_parameter_is_whole_where_it_is_used_and_its_gradient_split():
  mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
  kernel = jnp.arange(32.0).reshape(4, 8)
  split = NamedSharding(mesh, PartitionSpec('fsdp', 'tensor'))
  whole = NamedSharding(mesh, PartitionSpec(None, 'tensor'))

  def used(kernel):
    return sharding.whole_parameter(kernel, 'up/kernel')

  with jax.set_mesh(mesh):
    found, pull_back = jax.vjp(jax.jit(used), jax.device_put(kernel, split))
    (gradient,) = pull_back(jax.device_put(2 * kernel, whole))
  assert found.sharding.is_equivalent_to(whole, 2)
  assert gradient.sharding.is_equivalent_to(split, 2)
  assert_array_equal(found, kernel)
  assert_array_equal(gradient, 2 * kernel)
  assert used(kernel) is kernel  # No mesh, nothing to ask.


def shapes(**changes):
  settings = {'vocab_size': 64, 'heads': 4, 'kv_heads': 2, 'qkv_bias': True}
  model = Transformer(
    Architecture(**(settings | changes)), lora=LoraConfig(rank=2)
  )
  tokens, length = jnp.zeros((2, 3), int), jnp.ones(2, int)
  return jax.eval_shape(model.init, jax.random.key(0), tokens, length)['params']


def specs(tree, mesh):
  shardings = sharding.parameter_shardings(tree, mesh)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): sharding.spec
    for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
  }


def test_every_parameter_has_a_rule_and_every_rule_a_parameter():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  found = specs(shapes(), mesh)
  assert found['embedding'] == PartitionSpec('tensor', 'fsdp')
  assert found['head'] == PartitionSpec('fsdp', 'tensor')
  assert found['blocks/down/kernel'] == PartitionSpec(None, 'tensor', 'fsdp')
  assert found['blocks/mlp_norm/scale'] == PartitionSpec()
  head = jax.eval_shape(reward_model.init, jax.random.key(0), shapes())
  found |= specs(head, mesh)
  assert found['score'] == PartitionSpec('fsdp', None)
  assert found['blocks/query/lora_a'] == PartitionSpec(None, 'fsdp', None)
  assert found['blocks/down/lora_b'] == PartitionSpec(None, None, 'fsdp')
  for pattern, _ in sharding.PARTITION_RULES:
    assert any(re.search(pattern + '$', name) for name in found), pattern


def test_a_dimension_that_does_not_divide_is_replicated():
  mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
  found = specs(shapes(), mesh)
  assert found['blocks/query/kernel'] == PartitionSpec(
    None, 'fsdp', 'tensor', None
  )
  assert found['blocks/key/kernel'] == PartitionSpec(None, 'fsdp', None, None)


def test_optimizer_moments_are_sharded_like_their_parameters():
  mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
  params = shapes()
  state = jax.eval_shape(optax.adamw(1e-3).init, params)
  found = specs(state, mesh)
  for name, spec in specs(params, mesh).items():
    assert found[f'0/mu/{name}'] == found[f'0/nu/{name}'] == spec
  assert found['0/count'] == PartitionSpec()


def test_a_parameter_without_a_rule_is_named():
  mesh = make_mesh(MeshConfig())
  with pytest.raises(ConfigError, match='blocks/adapter/kernel'):
    sharding.parameter_shardings(
      {'blocks': {'adapter': {'kernel': jnp.ones((2, 2))}}}, mesh
    )


@pytest.mark.parametrize('inside', [False, True])
def test_over_heads_gives_each_device_its_prompts_and_heads(inside):
  """Also where the prompts have been given to the devices already."""
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  shapes = []

  def product(query, keys, length):
    shapes.append((query.shape, keys[0].shape, length.shape))
    return query * keys[0] * length[:, None, None, None]

  def run(*args):
    return sharding.over_heads(product, *args)

  values = np.random.default_rng(0)
  query, key = (values.normal(size=(8, 3, 4, 5)) for _ in range(2))
  length = np.arange(8)
  with jax.set_mesh(mesh):
    over = sharding.over_prompts(run, whole=()) if inside else run
    out = jax.jit(over)(query, (key,), length)
  assert shapes[-1] == ((2, 3, 2, 5), (2, 3, 2, 5), (2,))
  assert_allclose(out, query * key * length[:, None, None, None], rtol=1e-6)


def test_to_global():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  tree = {'tokens': np.arange(24).reshape(8, 3), 'length': np.arange(8)}
  ours = sharding.to_global(mesh, tree)
  jax.tree.map(assert_array_equal, ours, tree)
  for x in jax.tree.leaves(ours):
    assert x.sharding == NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
    assert {s.data.shape[0] for s in x.addressable_shards} == {2}
