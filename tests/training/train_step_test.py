"""Whole steps: against the loss of the whole batch, packed, and on meshes."""

import collections
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import B, G, P, T, V, chosen, dense, mean_of, run, update_of

from gft_jax.batch import GroupBatch, Prompts, Responses
from gft_jax.config import Architecture, LossConfig, MeshConfig
from gft_jax.models import forward, packing
from gft_jax.models.transformer import Transformer
from gft_jax.ops import advantages, losses, masking
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh
from gft_jax.training import objectives, train_step


def expected_loss(model, params, batch, objective, reduction, temperature):
  logp, _ = forward.token_logprobs(
    model, params, batch, chunk=64, temperature=temperature
  )
  a = advantages.group_normalized(batch.rewards, batch.member_mask)
  values = {
    'sft': lambda: losses.sft_token_loss(logp),
    'dft': lambda: losses.dft_token_loss(logp),
    'gft': lambda: losses.gft_token_loss(logp, a, tau=0.3),
    'grpo': lambda: losses.grpo_token_loss(
      logp,
      jnp.where(batch.token_mask, batch.responses.behavior_logp, 0),
      a,
      clip_low=0.2,
      clip_high=0.2,
      dual_clip=3.0,
    ),
  }[objective]()
  return masking.REDUCTIONS[reduction](values, batch.token_mask).value


@pytest.mark.parametrize('reduction', ['token_mean', 'sequence_mean'])
@pytest.mark.parametrize('objective', ['sft', 'dft', 'gft', 'grpo'])
def test_loss_and_update_are_those_of_the_whole_batch(
  model, params, batch, objective, reduction
):
  temperature = 0.7
  state, metrics, _ = run(
    model,
    params,
    batch,
    objective,
    tau=0.3,
    reduction=reduction,
    temperature=temperature,
  )
  seen = temperature if objective == 'grpo' else 1.0
  loss, grads = jax.value_and_grad(
    lambda p: expected_loss(model, p, batch, objective, reduction, seen)
  )(params)
  np.testing.assert_allclose(metrics['loss'].value, loss, rtol=1e-5)
  np.testing.assert_allclose(
    metrics['grad_norm'].value, optax.tree.norm(grads), rtol=1e-5
  )
  chex.assert_trees_all_close(update_of(params, state), grads, atol=2e-6)


def test_mini_batches_are_updates_one_after_the_other(model, params, batch):
  """Row b is in mini-batch b % 2; advantages are those of before."""
  both, metrics, _ = run(model, params, batch, 'gft', mini_batches=2)
  assert int(both.step) == 2
  state = params
  for part in range(2):
    rows = jax.tree.map(lambda x: x[part::2], batch)  # noqa: B023
    half, _, _ = run(model, state, rows, 'gft')
    state = half.params
  chex.assert_trees_all_close(both.params, state, atol=2e-6)
  assert float(metrics['loss'].weight) == 2


def test_padding_empty_slots_and_zero_advantage_groups_do_not_push(
  model, params, batch
):
  noise = jax.random.randint(jax.random.key(5), (B, G, T), 0, V)
  tokens = jnp.where(batch.token_mask, batch.responses.tokens, noise)
  noisy = batch.replace(responses=batch.responses.replace(tokens=tokens))
  a, _, _ = run(model, params, batch, 'gft')
  b, _, _ = run(model, params, noisy, 'gft')
  chex.assert_trees_all_close(a.params, b.params, atol=1e-6)

  same = batch.replace(rewards=jnp.ones((B, G)))
  still, metrics, maxima = run(model, params, same, 'gft')
  chex.assert_trees_all_equal(still.params, params)
  assert float(metrics['grad_norm'].value) == 0
  assert float(metrics['zero_variance_groups'].value) == 1
  assert float(maxima['max_weight']) == 0


@pytest.mark.slow
def test_psft_divides_by_the_policy_that_began_the_step(model, params, batch):
  """Two updates by hand: SFT's, then the clipped ratio to the first policy."""
  # At a rate of 0.3 the second gradient is so steep that parameters which differ
  # by 1e-7 of their size change it by 7e-5.
  rate = 0.1
  sgd = optax.sgd(rate)
  first = jax.tree.map(lambda x: x[0::2], batch)
  second = jax.tree.map(lambda x: x[1::2], batch)
  state, _, _ = run(model, params, first, 'sft', optimizer=sgd)
  old = chosen(dense(model, params, second), second)

  def loss(p):
    ratio = jnp.exp(chosen(dense(model, p, second), second) - old)
    return mean_of(-jnp.minimum(ratio, 1.28), second)

  grads = jax.grad(loss)(state.params)
  expected = jax.tree.map(lambda x, g: x - rate * g, state.params, grads)
  for micro_batches in (1, 2):
    ours, metrics, _ = run(
      model,
      params,
      batch,
      'psft',
      optimizer=sgd,
      mini_batches=2,
      micro_batches=micro_batches,
    )
    chex.assert_trees_all_close(ours.params, expected, atol=1e-5)
  assert 0 < float(metrics['clipped_fraction'].value) < 1


def packed(batch, **settings):
  """On the host and back, as the engine does."""
  return packing.pack(jax.tree.map(np.asarray, batch), **settings)


def widened(batch):
  """With room for answers of 32 tokens."""

  def widen(x):
    return jnp.pad(x, [(0, 0), (0, 0), (0, 32 - T)])

  responses = batch.responses
  return batch.replace(
    responses=responses.replace(
      tokens=widen(responses.tokens),
      behavior_logp=widen(responses.behavior_logp),
    ),
  )


MICRO = {'kl_weight': 0.3, 'kl': 'k2', 'micro_batches': 2}
MINI = {'entropy_bonus': 0.1, 'mini_batches': 2}


@pytest.mark.parametrize(
  ('objective', 'settings', 'in_rows'),
  [
    ('asft', {}, True),
    ('gft', MICRO, False),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ('asft', {}, False),
        ('gft', MICRO, True),
        ('grpo', MINI, True),
        ('grpo', MINI, False),
      )
    ),
  ],
)
def test_packed_batches_train_as_they_are(
  model, params, batch, objective, settings, in_rows
):
  """Also where a prompt has several answers and where one is empty.

  Half of the parameters: at the whole ones more padding alone moves the
  gradient by 2e-5 of 3.5.
  """
  params = jax.tree.map(lambda x: 0.5 * x, params)
  batch = widened(batch)
  parts = settings.get('micro_batches', settings.get('mini_batches', 1))
  other = packed(batch, parts=parts, rows=in_rows)
  assert (other.packing.rows is not None) == in_rows
  assert other.packing.source.size < other.responses.tokens.size
  reference = jax.tree.map(lambda x: 0.5 * x, params)
  (state, *metrics), (packed_state, *packed_metrics) = (
    run(model, params, x, objective, reference=reference, **settings)
    for x in (batch, other)
  )
  chex.assert_trees_all_close(state.params, packed_state.params, atol=1e-6)
  chex.assert_trees_all_close(metrics, packed_metrics, rtol=1e-5, atol=1e-6)


def test_no_buffer_of_tokens_by_vocabulary_or_of_tokens_by_keys():
  """B 1, G 2, P 512, T 512, V 151,936, chunk 16: the compiled program."""
  vocabulary, tokens, chunk = 151_936, 512, 16
  model = Transformer(
    Architecture(vocab_size=vocabulary, width=8, mlp_width=16, head_size=2)
  )
  integers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
  floats = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  batch = GroupBatch(
    prompts=Prompts(integers((1, tokens)), integers((1,)), integers((1,))),
    responses=Responses(
      integers((1, 2, tokens)), integers((1, 2)), floats((1, 2, tokens))
    ),
    rewards=floats((1, 2)),
    origin=integers((1, 2)),
    member_mask=jax.ShapeDtypeStruct((1, 2), bool),
  )
  variables = jax.eval_shape(
    model.init, jax.random.key(0), batch.prompts.tokens, batch.prompts.length
  )
  state = jax.eval_shape(
    lambda params: train_step.create_state(model, params, optax.sgd(1.0)),
    variables['params'],
  )
  step = train_step.make_train_step(
    model, objectives.OBJECTIVES['gft'], LossConfig(chunk=chunk)
  )
  text = jax.jit(step).lower(state, batch).compile().as_text()
  shapes = {
    tuple(int(n) for n in shape.split(','))
    for shape in re.findall(r'\w+\[([\d,]+)\]', text)
  }
  assert max(math.prod(shape) for shape in shapes) <= chunk * vocabulary
  # T - 1 tokens run; no array counts queries on one axis and keys on another.
  for shape in shapes:
    long = [n for n in shape if n >= tokens - 1 and n != vocabulary]
    assert len(long) < 2, shape


def test_operations_of_the_step_bear_the_names_of_the_paper(
  model, params, batch
):
  """In the compiled program, where a profile finds them."""
  step = train_step.make_train_step(
    model,
    objectives.OBJECTIVES['gft'],
    LossConfig(chunk=7, kl_weight=0.1, behavior='recomputed'),
    mini_batches=2,
  )
  state = train_step.create_state(model, params, optax.adamw(1e-3))
  text = jax.jit(step).lower(state, batch, params).compile().as_text()
  names = (
    *('group_advantages', 'behavior', 'reference', 'head', 'token_losses'),
    *('dynamic_coefficient', 'diagnosis', 'optimizer', 'Transformer.prefill'),
    'Transformer.respond',
  )
  found = {
    tuple(name for name in re.findall(r'[\w.]+', path) if name in names)
    for path in re.findall(r'op_name="jit\(step\)/([^"]*)"', text)
  }
  forward = (('Transformer.prefill',), ('Transformer.respond',), ('head',))
  assert found >= {
    ('group_advantages',),
    *(('behavior', *scope) for scope in forward),
    *(('reference', *scope) for scope in forward),
    *forward,
    ('head', 'token_losses', 'dynamic_coefficient'),
    ('diagnosis',),
    ('optimizer',),
  }


# data, fsdp, tensor
MESHES = {
  'data': MeshConfig(data=8),
  'fsdp': MeshConfig(fsdp=8),
  'mixed': MeshConfig(data=2, fsdp=2, tensor=2),
}


def on_mesh(mesh, model, params, batch, objective, **settings):
  """The jitted step and its arguments, placed as the engine places them."""
  mini, micro = (
    settings.pop('mini_batches', 1),
    settings.pop('micro_batches', 1),
  )
  step = train_step.make_train_step(
    model,
    objectives.OBJECTIVES[objective],
    LossConfig(chunk=7, **settings),
    mini_batches=mini,
    micro_batches=micro,
  )
  state = train_step.create_state(model, params, optax.sgd(1.0))
  state, reference = (
    jax.device_put(x, sharding.parameter_shardings(x, mesh))
    for x in (state, jax.tree.map(lambda x: 0.9 * x, params))
  )
  batch = jax.device_put(batch, sharding.batch_sharding(mesh))
  return jax.jit(step), (state, batch, reference)


@pytest.mark.parametrize(
  ('shape', 'kl'),
  [
    (MESHES['mixed'], 'k2'),
    *(
      pytest.param(shape, kl, marks=pytest.mark.slow)
      for shape in MESHES.values()
      for kl in ('k2', 'forward')
      if (shape, kl) != (MESHES['mixed'], 'k2')
    ),
  ],
)
def test_loss_and_gradient_are_the_same_on_any_mesh(
  model, params, batch, shape, kl
):
  """Whole on one device, and packed by each device of a mesh."""
  # The longer answers are right, so that the loss is no sum that cancels.
  rewards = jnp.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0.0]])
  batch = widened(batch.replace(rewards=rewards))
  batch = jax.tree.map(lambda x: jnp.concatenate([x] * 4), batch)  # 16 prompts
  tokens = batch.prompts.tokens + jnp.arange(4 * B)[:, None]
  batch = batch.replace(prompts=batch.prompts.replace(tokens=tokens % V))
  settings = {'kl_weight': 0.3, 'kl': kl, 'micro_batches': 2}
  results = []
  for config in (MeshConfig(), shape):
    mesh = make_mesh(config)
    if config is shape:
      batch = packed(batch, shards=sharding.prompt_shards(mesh), parts=2)
      assert batch.packing.rows is not None
    step, arguments = on_mesh(mesh, model, params, batch, 'gft', **settings)
    with jax.set_mesh(mesh):
      state, metrics, maxima = step(*arguments)
    results.append(jax.device_get((state.params, metrics, maxima)))
  (ours, metrics, maxima), (theirs, *others) = results
  chex.assert_trees_all_close((metrics, maxima), tuple(others), rtol=2e-5)
  # SGD at rate 1: the difference is that of the gradients.
  chex.assert_trees_all_close(ours, theirs, atol=3e-6)


def test_each_device_computes_its_own_prompts(batch):
  """Left alone, XLA keeps parameters in place and splits widths (measured)."""
  mesh = make_mesh(MeshConfig(fsdp=8))
  model = Transformer(Architecture(vocab_size=48, width=32, mlp_width=64))
  batch = jax.tree.map(lambda x: jnp.concatenate([x] * 2), batch)  # 8 prompts
  params = model.init(
    jax.random.key(0), batch.prompts.tokens, batch.prompts.length
  )['params']
  step, arguments = on_mesh(mesh, model, params, batch, 'gft', kl_weight=0.3)
  with jax.set_mesh(mesh):
    traced = step.trace(*arguments)
    text = traced.lower().compile().as_text()
  # A TPU would multiply by one shard of these after another; see
  # sharding.whole_parameter.
  asked = r'f32\[(64,32|32,64)\] = sharding_constraint'
  assert set(re.findall(asked, str(traced.jaxpr))) == {'64,32', '32,64'}
  rows = collections.defaultdict(set)
  for size, scope in re.findall(
    r'= f32\[(\d+),\d+\]\S* dot.*/jvp\(Transformer\.(\w+)\)/.*blocks', text
  ):
    rows[scope].add(int(size))
  assert rows == {'prefill': {P}, 'respond': {G * (T - 1)}}  # of one prompt
  gathers = re.findall(r'= f32\[([\d,]+)\]\S* all-gather', text)
  sizes = [math.prod(map(int, size.split(','))) for size in gathers]
  assert sizes and max(sizes) == 32 * 96  # a matrix of one layer
