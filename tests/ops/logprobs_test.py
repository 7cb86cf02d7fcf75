import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import TypeCheckError
from numpy.testing import assert_allclose

from gft_jax.ops import divergences, logprobs

D, V, SHAPE = 6, 11, (2, 3, 5)
_bits = np.random.default_rng(0)
HIDDEN = _bits.normal(size=(*SHAPE, D)).astype('float32')
HEAD = _bits.normal(size=(D, V)).astype('float32')
TARGETS = _bits.integers(0, V, SHAPE)
OTHER = _bits.normal(size=(*SHAPE, 4)).astype('float32')
OTHER_HEAD = _bits.normal(size=(4, V)).astype('float32')


def plain(hidden, head, targets, temperature=1.0):
  """What jax differentiates by itself, logits and all."""
  logq = jax.nn.log_softmax(hidden @ head / temperature)
  logp = jnp.take_along_axis(logq, targets[..., None], axis=-1)[..., 0]
  return logp, -(jnp.exp(logq) * logq).sum(axis=-1)


def test_oracle():
  ours = logprobs.target_logprobs(
    jnp.array(HIDDEN), jnp.array(HEAD), TARGETS, chunk=7, temperature=0.7
  )
  expected = [
    oracles.target_logprob(h.tolist(), HEAD.tolist(), int(t), 0.7)
    for h, t in zip(HIDDEN.reshape(-1, D), TARGETS.ravel())
  ]
  assert_allclose(
    np.stack(ours, axis=-1).reshape(-1, 2), expected, rtol=1e-5, atol=1e-6
  )


@pytest.fixture(params=[V, 4], ids=['whole', 'blocks'])
def blocks(request, monkeypatch):
  """The vocabulary in one block, or in two and a shorter one."""
  monkeypatch.setattr(logprobs, 'VOCABULARY_BLOCK', request.param)


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('chunk', [1, 7, 10, 30, 1000])
def test_values_and_gradients_of_both_outputs_at_any_chunk(chunk):
  weights = jnp.array(_bits.normal(size=(2, *SHAPE)))

  def weighted(function):
    def loss(hidden, head):
      return (weights * jnp.stack(function(hidden, head))).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))

  with jax.enable_x64(True):
    hidden, head = np.float64(HIDDEN), np.float64(HEAD)
    ours = weighted(
      lambda hidden, head: logprobs.target_logprobs(
        hidden, head, TARGETS, chunk=chunk, temperature=0.7
      )
    )(hidden, head)
    expected = weighted(lambda h, w: plain(h, w, TARGETS, 0.7))(hidden, head)
    jax.tree.map(
      lambda x, y: assert_allclose(x, y, rtol=1e-9, atol=1e-12), ours, expected
    )
    assert ours[0].dtype == jnp.float64


def test_token_axes_may_be_none_or_empty():
  head = jnp.array(HEAD)
  logp, _ = logprobs.target_logprobs(
    jnp.array(HIDDEN[0, 0, 0]), head, jnp.array(3), chunk=4
  )
  assert logp.shape == ()
  logp, _ = logprobs.target_logprobs(
    jnp.zeros((2, 0, D)), head, jnp.zeros((2, 0), int), chunk=4
  )
  assert logp.shape == (2, 0)


def test_bfloat16():
  """float32 out, gradients in bfloat16, near those of float32."""

  def loss(hidden, head):
    logp, entropy = logprobs.target_logprobs(hidden, head, TARGETS, chunk=7)
    assert logp.dtype == entropy.dtype == jnp.float32
    return (logp + entropy).sum()

  arrays = jnp.array(HIDDEN), jnp.array(HEAD)
  low = [x.astype(jnp.bfloat16) for x in arrays]
  gradient = jax.grad(loss, argnums=(0, 1))
  for ours, expected in zip(
    gradient(*low), gradient(*(x.astype('float32') for x in low))
  ):
    assert ours.dtype == jnp.bfloat16
    scale = float(abs(expected).max())
    assert_allclose(
      ours.astype('float32'), expected, rtol=0.02, atol=0.01 * scale
    )


def test_head_gradient_of_many_chunks_is_added_in_float32():
  """In bfloat16, 1000 equal summands stop counting at a few hundred."""
  count = 1000
  hidden, head = (
    jnp.ones((count, 1), jnp.bfloat16),
    jnp.zeros((1, 2), 'bfloat16'),
  )
  gradient = jax.grad(
    lambda head: logprobs.target_logprobs(
      hidden, head, jnp.zeros(count, int), chunk=1
    )[0].sum()
  )(head)
  assert_allclose(gradient.astype('float32'), [[500, -500]], rtol=0.01)


@pytest.mark.usefixtures('blocks')
def test_extreme_logits():
  hidden = jnp.array([[1e4, 0.0], [0.0, 0.0]])
  logp, entropy = logprobs.target_logprobs(
    hidden, jnp.eye(2), jnp.array([1, 1]), chunk=2
  )
  assert_allclose(logp, [-1e4, -np.log(2)], rtol=1e-6)
  assert_allclose(entropy, [0, np.log(2)], atol=1e-6)


def test_errors():
  arrays = jnp.ones((3, D)), jnp.ones((D, V)), jnp.zeros(3, int)
  for settings in ({'chunk': 0}, {'chunk': 1, 'temperature': 0.0}):
    with pytest.raises(AssertionError):
      logprobs.target_logprobs(*arrays, **settings)
  with pytest.raises(TypeCheckError):
    logprobs.target_logprobs(
      jnp.ones((3, D)), jnp.ones((D, V)), jnp.zeros(2, int), chunk=1
    )


def largest_buffer(text):
  """Elements of the largest array that an HLO text names."""
  shapes = re.findall(r'\w+\[([\d,]+)\]', text)
  return max(int(np.prod([int(n) for n in s.split(',')])) for s in shapes)


@pytest.mark.parametrize('name', ['target_logprobs', 'kl_to_reference'])
def test_no_buffer_of_all_logits(name):
  """512 tokens of a vocabulary of 50,000, forward and backward."""
  tokens, vocabulary, chunk, width = 512, 50_000, 16, 8
  hidden = jax.ShapeDtypeStruct((4, 2, tokens // 8, width), jnp.float32)
  head = jax.ShapeDtypeStruct((width, vocabulary), jnp.float32)
  targets = jnp.zeros(hidden.shape[:-1], int)

  def loss(hidden, head):
    if name == 'target_logprobs':
      parts = logprobs.target_logprobs(hidden, head, targets, chunk=chunk)
    else:
      reference = jax.lax.stop_gradient((hidden, head))
      parts = [
        divergences.kl_to_reference(hidden, head, *reference, chunk=chunk)
      ]
    return sum(part.sum() for part in parts)

  step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  compiled = step.lower(hidden, head).compile()
  assert largest_buffer(compiled.as_text()) <= chunk * vocabulary
  jaxpr = str(jax.make_jaxpr(step)(hidden, head))
  sizes = [
    int(np.prod([int(n) for n in shape.split(',')]))
    for shape in re.findall(r'\w\d+\[([\d,]+)\]', jaxpr)
  ]
  assert max(sizes) == chunk * vocabulary


def test_sharded_tokens_are_not_gathered():
  """Every device holds a share of each chunk: hidden states stay put."""
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  whole = NamedSharding(mesh, PartitionSpec())
  hidden = jax.ShapeDtypeStruct((16, 4, 8, D), jnp.float32, sharding=rows)
  targets = jax.ShapeDtypeStruct((16, 4, 8), jnp.int32, sharding=rows)
  head = jax.ShapeDtypeStruct((D, V), jnp.float32, sharding=whole)

  def loss(hidden, head, targets):
    return logprobs.target_logprobs(hidden, head, targets, chunk=64)[0].sum()

  step = jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1)),
    out_shardings=(whole, (rows, whole)),
  )
  text = step.lower(hidden, head, targets).compile().as_text()
  assert not re.search('all-gather|all-to-all|collective-permute', text)
  assert 'all-reduce' in text


def test_kl_oracle_and_gradient():
  def loss(hidden, head):
    return divergences.kl_to_reference(
      hidden, head, jnp.array(OTHER), jnp.array(OTHER_HEAD), chunk=7
    )

  def plain_loss(hidden, head):
    logp = jax.nn.log_softmax(hidden @ head)
    logq = jax.nn.log_softmax(jnp.array(OTHER) @ jnp.array(OTHER_HEAD))
    return (jnp.exp(logp) * (logp - logq)).sum(axis=-1)

  arrays = jnp.array(HIDDEN), jnp.array(HEAD)
  expected = [
    oracles.kl(a.tolist(), HEAD.tolist(), b.tolist(), OTHER_HEAD.tolist())
    for a, b in zip(HIDDEN.reshape(-1, D), OTHER.reshape(-1, 4))
  ]
  assert_allclose(loss(*arrays).ravel(), expected, rtol=1e-4)
  for ours, theirs in zip(
    *(
      jax.jit(jax.grad(lambda *x, f=f: f(*x).sum(), argnums=(0, 1)))(*arrays)
      for f in (loss, plain_loss)
    )
  ):
    assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_kl_to_itself_is_zero():
  arrays = jnp.array(HIDDEN), jnp.array(HEAD)
  kl = divergences.kl_to_reference(*arrays, *arrays, chunk=7)
  assert kl.shape == SHAPE
  assert not kl.any()


def weighted_loss(logp, entropy, inputs):
  """Not linear in either, and different for each token."""
  weight, offset = inputs
  return weight * (jnp.exp(logp + offset) - 0.3 * entropy**2)


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('temperature', [1.0, 0.6])
@pytest.mark.parametrize('chunk', [1, 7, 1000])
def test_fused_equals_differentiated(chunk, temperature):
  inputs = tuple(jnp.asarray(_bits.normal(size=(2, *SHAPE)), jnp.float32))

  def fused(hidden, head):
    total, logp, entropy = logprobs.fused_token_loss(
      hidden,
      head,
      TARGETS,
      weighted_loss,
      inputs,
      chunk=chunk,
      temperature=temperature,
    )
    return 3 * total, (logp, entropy)

  def differentiated(hidden, head):
    logp, entropy = plain(hidden, head, TARGETS, temperature)
    return 3 * weighted_loss(logp, entropy, inputs).sum(), (logp, entropy)

  results = [
    jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(
      jnp.array(HIDDEN), jnp.array(HEAD)
    )
    for f in (fused, differentiated)
  ]
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, rtol=2e-5, atol=2e-6), *results
  )
  value, _ = jax.jit(fused)(jnp.array(HIDDEN), jnp.array(HEAD))
  assert_allclose(value, results[1][0][0], rtol=1e-5)


def test_fused_makes_each_logit_once_and_never_all():
  """Of three products of size tokens x V one is the logits; plain has four."""
  tokens, width, vocabulary, chunk = 64, 8, 997, 16
  hidden = jnp.ones((tokens, width))
  head, targets = jnp.ones((width, vocabulary)), jnp.zeros(tokens, int)
  inputs = (jnp.ones(tokens), jnp.ones(tokens))

  def fused(hidden, head):
    return logprobs.fused_token_loss(
      hidden, head, targets, weighted_loss, inputs, chunk=chunk
    )[0]

  def twice(hidden, head):
    logp, entropy = logprobs.target_logprobs(hidden, head, targets, chunk=chunk)
    return weighted_loss(logp, entropy, inputs).sum()

  once, again = (
    jax.jit(jax.grad(f, argnums=(0, 1))).lower(hidden, head).compile()
    for f in (fused, twice)
  )
  ratio = once.cost_analysis()['flops'] / again.cost_analysis()['flops']
  assert 0.7 < ratio < 0.85, ratio
  largest = largest_buffer(once.as_text())
  assert largest == chunk * vocabulary
