"""Attention against loops; parts of the keys against all of them at once."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.models import attention


def random(seed, *shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def attention_by_loops(query, key, value, mask):
  """[S,H,K], [U,N,K], [U,N,K], [S,U] -> [S,H,K], one head at a time."""
  size, heads, head_size = query.shape
  repeats = heads // key.shape[1]
  out = np.zeros(query.shape)
  for s in range(size):
    for h in range(heads):
      seen = [u for u in range(len(key)) if mask[s, u]]
      weights = [
        math.exp(float(query[s, h] @ key[u, h // repeats]) / head_size**0.5)
        for u in seen
      ]
      for weight, u in zip(weights, seen):
        out[s, h] += weight / sum(weights) * value[u, h // repeats]
  return out


def test_rotation_is_position_times_falling_frequency():
  cos, sin = attention.rotation(jnp.array([[0, 3]]), head_size=4, theta=100.0)
  np.testing.assert_allclose(cos[0, 0], [1, 1])
  np.testing.assert_allclose(cos[0, 1], [math.cos(3), math.cos(0.3)], rtol=1e-6)
  np.testing.assert_allclose(sin[0, 1], [math.sin(3), math.sin(0.3)], rtol=1e-6)


def test_llama3_scaling_divides_slow_frequencies_only():
  # Turns in a context of 1000: 159, 1.59 and 0.0159; low=1 and high=4 keep
  # the first, divide the last by 8 and blend the middle.
  _, sin = attention.rotation(
    jnp.array([1]),
    head_size=6,
    theta=1e6,
    scaling=(8.0, 1.0, 4.0, 1000),
  )
  blend = (1000 * 0.01 / (2 * math.pi) - 1) / (4 - 1)
  expected = [1.0, 0.01 * (blend + (1 - blend) / 8), 1e-4 / 8]
  np.testing.assert_allclose(np.arcsin(sin[0]), expected, rtol=1e-5)


def test_rotate_pairs_the_halves():
  rotation = (jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]]))
  turned = attention.rotate(jnp.array([[[1.0, 2.0, 3.0, 4.0]]]), rotation)
  np.testing.assert_array_equal(turned, [[[-3.0, 2.0, 1.0, 4.0]]])


def test_rotated_scores_depend_on_distance_only():
  query, key = random(0, 1, 1, 8), random(1, 1, 1, 8)

  def score(i, j):
    q, k = (
      attention.rotate(
        x, attention.rotation(jnp.array([p]), head_size=8, theta=100.0)
      )
      for x, p in ((query, i), (key, j))
    )
    return float((q * k).sum())

  assert score(7, 3) == pytest.approx(score(24, 20), abs=1e-5)
  assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_attend_equals_loops(kv_heads):
  query = random(0, 3, 4, 6)
  key, value = random(1, 5, kv_heads, 6), random(2, 5, kv_heads, 6)
  mask = jnp.array([[1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], bool)
  part = jax.jit(attention.attend)(query, key, value, mask)
  np.testing.assert_allclose(
    part.out,
    attention_by_loops(*map(np.asarray, (query, key, value, mask))),
    atol=1e-6,
  )


def test_merged_parts_equal_the_whole_in_value_and_gradient():
  # A stopped log-sum-exp (jax.nn's residual) gives the same value and another
  # gradient; only the second half of this test sees it.
  query, key, value = random(0, 3, 4, 6), random(1, 7, 2, 6), random(2, 7, 2, 6)
  everything = jnp.ones((1, 7), bool)

  def whole(query, key, value):
    return attention.attend(query, key, value, everything).out

  def parts(query, key, value):
    a = attention.attend(query, key[:2], value[:2], everything[:, :2])
    b = attention.attend(query, key[2:], value[2:], everything[:, 2:])
    return attention.merge(a, b).out

  weights = random(3, 3, 4, 6)

  def value_and_gradient(forward):
    def loss(*arrays):
      out = forward(*arrays)
      return (out * weights).sum(), out

    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    return run(query, key, value)

  chex.assert_trees_all_close(
    value_and_gradient(parts), value_and_gradient(whole), atol=1e-5
  )


def test_prompt_attention_is_causal_attention():
  query, key, value = (
    random(0, 1, 5, 4, 6),
    random(1, 1, 5, 2, 6),
    random(2, 1, 5, 2, 6),
  )
  expected = attention_by_loops(
    *(np.asarray(x[0]) for x in (query, key, value)), np.tril(np.ones((5, 5)))
  )
  segments = jnp.zeros((1, 5), jnp.int32)
  np.testing.assert_allclose(
    attention.attend_prompt(query, key, value, segments)[0], expected, atol=1e-6
  )


def test_response_attends_to_real_prompt_and_to_own_past():
  batch, group, tokens, prompt = 2, 3, 4, 5
  query = random(0, batch, group, tokens, 4, 6)
  own = (
    random(1, batch, group, tokens, 2, 6),
    random(2, batch, group, tokens, 2, 6),
  )
  prefix = random(3, batch, prompt, 2, 6), random(4, batch, prompt, 2, 6)
  length = jnp.array([5, 2])
  out = jax.jit(attention.attend_response)(query, own, prefix, length)
  query, own, prefix = jax.tree.map(np.asarray, (query, own, prefix))
  for b in range(batch):
    for g in range(group):
      key, value = (
        np.concatenate([p[b, : int(length[b])], o[b, g]])
        for p, o in zip(prefix, own)
      )
      mask = np.tril(np.ones((tokens, len(key))), k=int(length[b]))
      expected = attention_by_loops(query[b, g], key, value, mask)
      np.testing.assert_allclose(out[b, g], expected, atol=1e-6)


@pytest.mark.parametrize('block', [1, 3, 7])
def test_queries_in_blocks_equal_all_at_once(block, monkeypatch):
  """Prompt and response, in value and gradient."""
  query, weights = random(0, 2, 3, 7, 4, 6), random(5, 2, 3, 7, 4, 6)
  own = random(1, 2, 3, 7, 2, 6), random(2, 2, 3, 7, 2, 6)
  prefix = random(3, 2, 5, 2, 6), random(4, 2, 5, 2, 6)
  segments = jnp.array([[1, 1, 1, 2, 2, 2, 2], [1, 2, 2, 2, 2, 0, 0]])

  def loss(query, own, prefix):
    out = attention.attend_response(query, own, prefix, jnp.array([5, 2]))
    prompt = attention.attend_prompt(
      query[:, 0], own[0][:, 0], own[1][:, 0], segments
    )
    return (out * weights).sum() + (prompt * weights[:, 1]).sum()

  def results(size):
    monkeypatch.setattr(attention, 'QUERY_BLOCK', size)
    run = jax.value_and_grad(lambda *x: loss(*x), argnums=(0, 1, 2))
    return jax.jit(run)(query, own, prefix)

  chex.assert_trees_all_close(results(block), results(100), atol=1e-5)


def test_later_keys_are_not_read(monkeypatch):
  """In long sequences, keys after a part of the queries cost it nothing."""
  monkeypatch.setattr(attention, 'QUERY_BLOCK', 4)
  tokens, seen = 32, 8  # Four parts of two blocks.
  query = random(0, 1, 1, tokens, 2, 2)
  own = random(1, 1, 1, tokens, 1, 2), random(2, 1, 1, tokens, 1, 2)
  prefix = random(3, 1, 2, 1, 2), random(4, 1, 2, 1, 2)

  @jax.jit
  def first_part(*own):
    out = attention.attend_response(query, own, prefix, jnp.array([2]))
    keys, values = (x[:, 0] for x in own)
    segments = jnp.zeros((1, tokens), jnp.int32)
    prompt = attention.attend_prompt(query[:, 0], keys, values, segments)
    return out[:, :, :seen], prompt[:, :seen]

  # 0 * NaN is NaN, so keys that are only masked would show.
  poisoned = (x.at[:, :, seen:].set(jnp.nan) for x in own)
  chex.assert_trees_all_equal(first_part(*poisoned), first_part(*own))


def test_the_backward_pass_keeps_no_scores():
  """Of all blocks, in the compiled gradient: some at a time."""
  tokens, heads = 16 * attention.QUERY_BLOCK, 8
  query = jax.ShapeDtypeStruct((1, tokens, heads, 4), 'float32')
  segments = jax.ShapeDtypeStruct((1, tokens), 'int32')

  def loss(*arrays):
    return attention.attend_prompt(*arrays).sum()

  compiled = (
    jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    .lower(query, query, query, segments)
    .compile()
  )
  scores = 4 * heads * tokens**2
  assert compiled.memory_analysis().temp_size_in_bytes < scores // 2


def test_scores_of_a_group_are_bounded(monkeypatch):
  """Fewer queries at one time where many members see many keys."""
  group, heads, tokens = 8, 4, 64
  query = random(0, 1, group, tokens, heads, 2)
  own = random(1, 1, group, tokens, 2, 2), random(2, 1, group, tokens, 2, 2)
  prefix = random(3, 1, 32, 2, 2), random(4, 1, 32, 2, 2)

  def largest(scores):
    monkeypatch.setattr(attention, 'SCORES', scores)
    text = str(
      jax.make_jaxpr(lambda *x: attention.attend_response(*x))(
        query, own, prefix, jnp.array([32])
      )
    )
    shapes = re.findall(r'f32\[([\d,]+)\]', text)
    return max(np.prod([int(n) for n in shape.split(',')]) for shape in shapes)

  each = group * heads * tokens  # of one query
  assert largest(2**24) == tokens * each
  assert largest(4 * 40 * each) == 32 * each
  assert largest(1) == attention.FEWEST * each


def fresh_step():
  # jit caches by function: the same one would keep the first test's BLOCK.
  def step(*arguments, group_size):
    return attention.attend_step(*arguments, group_size=group_size)

  return jax.jit(step, static_argnames='group_size')


def cache_of(keys, values):
  """[B, G, T, N, K] twice -> keys [B G, N, K, T] and values [B G, N, T, K]."""
  keys, values = (
    np.asarray(x).reshape(-1, *x.shape[2:]) for x in (keys, values)
  )
  return keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)


@pytest.mark.parametrize('block', [1, 3, 64])
@pytest.mark.parametrize('slots', [[0, 1, 2, 3], [3, 0, 2]])
def test_steps_in_blocks_equal_the_response(block, slots, monkeypatch):
  """Of all rows, and of some in any order, as after others have left."""
  monkeypatch.setattr(attention, 'BLOCK', block)
  batch, group, tokens, prompt = 2, 2, 7, 3
  query = random(0, batch, group, tokens, 4, 6)
  own = (
    random(1, batch, group, tokens, 2, 6),
    random(2, batch, group, tokens, 2, 6),
  )
  prefix = random(3, batch, prompt, 2, 6), random(4, batch, prompt, 2, 6)
  length = jnp.array([3, 1])
  expected = jax.jit(attention.attend_response)(query, own, prefix, length)
  cache = tuple(x[np.array(slots)] for x in cache_of(*own))
  flat = [np.asarray(x).reshape(4, tokens, 4, 6) for x in (query, expected)]
  prompt = cache_of(*(x[:, None] for x in prefix))
  step = fresh_step()
  for t in range(tokens):
    out = step(
      flat[0][slots, t],
      cache,
      prompt,
      length,
      jnp.array(slots),
      jnp.int32(t),
      group_size=group,
    )
    np.testing.assert_allclose(out, flat[1][slots, t], atol=1e-6)


def test_blocks_after_the_step_are_not_read(monkeypatch):
  monkeypatch.setattr(attention, 'BLOCK', 4)
  query = random(0, 2, 4, 6)
  own = random(1, 2, 2, 6, 16), random(2, 2, 2, 16, 6)
  prompt = random(3, 1, 2, 6, 3), random(4, 1, 2, 3, 6)
  step = fresh_step()
  place = (jnp.arange(2), jnp.int32(6))
  arguments = (prompt, jnp.array([3]), *place)
  # 0 * NaN is NaN, so a block that is only masked would show.
  keys, values = own
  poisoned = keys.at[..., 8:].set(jnp.nan), values.at[:, :, 8:].set(jnp.nan)
  np.testing.assert_array_equal(
    step(query, poisoned, *arguments, group_size=2),
    step(query, own, *arguments, group_size=2),
  )
