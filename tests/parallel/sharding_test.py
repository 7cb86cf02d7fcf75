import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal

from gft_jax.config import Architecture, ConfigError, LoraConfig, MeshConfig
from gft_jax.models import reward_model
from gft_jax.models.transformer import Transformer
from gft_jax.ops import advantages, losses, masking
from gft_jax.parallel import mapped_loss, processes, sharding
from gft_jax.parallel import mesh as mesh_lib
from gft_jax.parallel.mesh import (
  check_divisible,
  check_rows,
  make_mesh,
  mesh_of,
  rollout_mesh,
)

TAU = 0.4
COLLECTIVES = 'all-reduce|all-gather|all-to-all|collective-permute|reduce-scat'


def inputs(batch=16, group=4, tokens=6):
  """Unequal masks: the first prompts have no token, later ones more."""
  bits = np.random.default_rng(0)
  member_mask = bits.random((batch, group)) < 0.8
  share = np.linspace(0, 1, batch)[:, None, None]
  token_mask = bits.random((batch, group, tokens)) < share
  token_mask &= member_mask[..., None]
  logp = -bits.exponential(size=(batch, group, tokens)).astype('float32')
  rewards = bits.integers(0, 2, (batch, group)).astype('float32')
  return (
    jnp.where(token_mask, logp, -jnp.inf),
    jnp.where(member_mask, rewards, jnp.nan),
    jnp.array(member_mask),
    jnp.array(token_mask),
  )


def on_devices(x):
  return x.reshape(8, x.shape[0] // 8, *x.shape[1:])


MAPPED = {
  'pmap': lambda *args: mapped_loss.pmapped_gft_loss(
    *map(on_devices, args), tau=TAU
  ),
  'shard_map': lambda *args: mapped_loss.shard_mapped_gft_loss(
    make_mesh(MeshConfig(data=4, fsdp=2)), *args, tau=TAU
  ),
}


@pytest.mark.parametrize('name', MAPPED)
def test_mapped_loss_equals_the_jitted_one_and_so_does_its_gradient(name):
  logp, *rest = inputs()
  single = jax.jit(
    jax.value_and_grad(lambda logp: mapped_loss.gft_loss(logp, *rest, tau=TAU))
  )
  value, gradient = single(logp)
  mapped, mapped_gradient = jax.jit(
    jax.value_and_grad(lambda logp: MAPPED[name](logp, *rest))
  )(logp)
  assert mapped.shape == ()
  assert_allclose(mapped, value, rtol=1e-6)
  assert_allclose(mapped_gradient, gradient, rtol=1e-6, atol=1e-9)
  assert float(value) and jnp.isfinite(mapped_gradient).all()
  assert gradient.any()
  # A mean over the devices' own means would be another number.
  means = jax.jit(jax.vmap(lambda *args: mapped_loss.gft_loss(*args, tau=TAU)))(
    *map(on_devices, (logp, *rest))
  )
  assert abs(float(value) - np.mean(means)) > 1e-3


def test_pmapped_loss_is_traced_once(monkeypatch):
  traces = []

  def counted(*args, body=mapped_loss._on_device):
    traces.append(1)
    return body(*args)

  monkeypatch.setattr(mapped_loss, '_on_device', counted)
  args = [on_devices(x) for x in inputs()]
  losses_by_tau = [
    float(mapped_loss.pmapped_gft_loss(*args, tau=tau))
    for tau in (0.0, 0.5, 1.0)
  ]
  assert len(traces) == 1
  assert len(set(losses_by_tau)) == 3


def compiled_text(function, *args):
  return jax.jit(function).lower(*args).compile().as_text()


def sharded_inputs():
  mesh = make_mesh(MeshConfig(data=4, fsdp=2))
  return jax.device_put(inputs(), sharding.batch_sharding(mesh))


def test_advantage_and_rectification_need_no_collective():
  """B is sharded and a group is not: only the sums of the mean travel."""

  def token_losses(logp, rewards, member_mask, token_mask):
    a = advantages.group_normalized(rewards, member_mask)
    logp = masking.select(logp, token_mask)
    return losses.gft_token_loss(logp, a, tau=TAU)

  def loss(*args):
    return mapped_loss.gft_loss(*args, tau=TAU)

  args = sharded_inputs()
  assert not args[0].sharding.is_fully_replicated
  assert not re.search(COLLECTIVES, compiled_text(token_losses, *args))
  found = re.findall(
    rf' ({COLLECTIVES})\w*(?:-start)?\(', compiled_text(loss, *args)
  )
  assert found and set(found) == {'all-reduce'}


@pytest.mark.parametrize('axis', ['data', 'fsdp', 'tensor'])
def test_mesh_has_three_auto_axes_on_the_first_devices(axis):
  mesh = make_mesh(MeshConfig(**{axis: 4}))
  assert mesh.axis_names == ('data', 'fsdp', 'tensor')
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert mesh.shape[axis] == mesh.size == 4
  assert list(mesh.devices.flat) == jax.devices()[:4]


def test_a_mesh_has_the_devices_of_a_process_side_by_side():
  """In whatever order they come; jax.make_mesh would follow a TPU's torus."""
  devices = jax.devices()
  mesh = mesh_of(MeshConfig(fsdp=8), devices[4:] + devices[:4][::-1])
  assert list(mesh.devices.flat) == devices


def test_mesh_too_large_names_both_numbers():
  with pytest.raises(ConfigError, match='needs 16 devices, but there are 8'):
    make_mesh(MeshConfig(data=2, fsdp=4, tensor=2))


def test_check_divisible():
  mesh = MeshConfig(data=2, fsdp=2)
  check_divisible(16, mesh, parts=4)
  with pytest.raises(ConfigError, match=r'batch_size=16 .* multiple of 32'):
    check_divisible(16, mesh, parts=8)
  with pytest.raises(ConfigError, match=r'batch_size=6 .* multiple of 4'):
    check_divisible(6, mesh)


def test_rows_fill_the_devices_of_both_layouts():
  mesh = MeshConfig(fsdp=4, tensor=2, rollout_tensor=1)
  check_rows('eval.batch_size', 16, mesh)
  with pytest.raises(ConfigError, match=r'eval.batch_size=12 .* of the 8 dev'):
    check_rows('eval.batch_size', 12, mesh)
  with pytest.raises(ConfigError, match=r'eval.batch_size=6 .* of the 4 dev'):
    check_rows('eval.batch_size', 6, mesh)


def test_a_rollout_layout_divides_the_devices():
  with pytest.raises(
    ConfigError, match='rollout_tensor=3 does not divide the 8'
  ):
    MeshConfig(fsdp=8, rollout_tensor=3)


class Chip(NamedTuple):
  id: int
  process_index: int


@pytest.mark.parametrize('setting', ['tensor', 'rollout_tensor'])
def test_devices_that_share_a_prompt_are_of_one_process(setting, monkeypatch):
  """Also those of a slice that is not here (experiments/pods)."""
  monkeypatch.setattr(mesh_lib, 'Mesh', FakeMesh)
  chips = [Chip(i, i // 2) for i in range(8)]
  assert mesh_of(MeshConfig(fsdp=4, tensor=2), chips).devices.size == 8
  config = {
    'tensor': MeshConfig(fsdp=2, tensor=4),
    'rollout_tensor': MeshConfig(fsdp=8, rollout_tensor=4),
  }[setting]
  words = rf'mesh.{setting}=4: processes \[0, 1\] would hold the same prompts'
  with pytest.raises(ConfigError, match=words):
    rollout_mesh(mesh_of(config, chips), config)


class FakeMesh(NamedTuple):
  devices: np.ndarray
  axis_names: tuple[str, ...]
  axis_types: tuple


def test_the_rollout_mesh_has_the_devices_of_the_mesh_in_their_order():
  config = MeshConfig(fsdp=8, rollout_tensor=4)
  mesh = make_mesh(config)
  other = rollout_mesh(mesh, config)
  assert dict(other.shape) == {'data': 2, 'fsdp': 1, 'tensor': 4}
  assert list(other.devices.flat) == list(mesh.devices.flat)
  assert rollout_mesh(mesh, MeshConfig(fsdp=8)) is mesh


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


class TestInitializeProcesses:
  @pytest.fixture(autouse=True)
  def calls(self, monkeypatch):
    calls = []
    cached = jax.config.jax_enable_compilation_cache
    monkeypatch.setattr(
      jax.distributed, 'initialize', lambda *args, **_: calls.append(args)
    )
    for name in (
      'GFT_JAX_PROCESSES',
      'JAX_COORDINATOR_ADDRESS',
      'JAX_NUM_PROCESSES',
      'JAX_PROCESS_ID',
    ):
      monkeypatch.delenv(name, raising=False)
    yield calls
    jax.config.update('jax_enable_compilation_cache', cached)

  def test_alone(self, calls):
    processes.initialize_processes()
    assert calls == []

  def test_described(self, calls, monkeypatch):
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'localhost:1234')
    with pytest.raises(ConfigError, match='JAX_NUM_PROCESSES, JAX_PROCESS_ID'):
      processes.initialize_processes()
    monkeypatch.setenv('JAX_NUM_PROCESSES', '4')
    monkeypatch.setenv('JAX_PROCESS_ID', '3')
    processes.initialize_processes()
    assert calls == [('localhost:1234', 4, 3)]
    assert not jax.config.jax_enable_compilation_cache

  def test_numbers_that_are_none(self, calls, monkeypatch):
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'localhost:1234')
    monkeypatch.setenv('JAX_NUM_PROCESSES', 'two')
    monkeypatch.setenv('JAX_PROCESS_ID', '1')
    with pytest.raises(ConfigError, match=r"JAX_NUM_PROCESSES='two' .*numbers"):
      processes.initialize_processes()
    assert calls == []

  def test_found(self, calls, monkeypatch):
    monkeypatch.setenv('GFT_JAX_PROCESSES', 'auto')
    processes.initialize_processes()
    assert calls == [()]
