import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from gft_jax.ops import diagnostics, losses, masking, rectification

P = jnp.array([[0.9, 0.25, 0.01], [0.5, 0.2, 0.4]])
MASK = jnp.array([[1, 1, 0], [1, 1, 1]], bool)


def test_implicit_reward():
  demonstration = jnp.array([[4, 5, 1, 0]] * 5)
  tokens = jnp.array(
    [
      [4, 5, 1, 0],  # the same
      [4, 5, 1, 9],  # differs beyond the length
      [4, 5, 1, 0],  # one token more, equal to the padding
      [4, 6, 1, 0],
      [4, 5, 0, 0],  # a prefix
    ]
  )
  length = jnp.array([3, 3, 4, 3, 2])
  ours = diagnostics.implicit_reward(
    tokens, length, demonstration, jnp.full(5, 3)
  )
  assert ours.tolist() == [1, 1, 0, 0, 0]


def test_inverse_probability():
  logp = jnp.log(P)
  assert_allclose(diagnostics.inverse_probability(logp), 1 / P, rtol=1e-6)
  # exp(100) is no float32, and infinity times 0 would be no number.
  assert jnp.isfinite(diagnostics.inverse_probability(jnp.array(-100.0)))
  largest = diagnostics.largest_inverse_probability
  assert_allclose(largest(logp, MASK), 5, rtol=1e-6)
  hidden = jnp.where(MASK, logp, -jnp.inf)
  assert_allclose(largest(hidden, MASK), 5, rtol=1e-6)
  assert largest(logp, jnp.zeros_like(MASK)) == 1


def test_rectified_fraction_is_that_of_the_coefficient():
  logp = jnp.log(P)
  ours = diagnostics.rectified_fraction(logp, MASK, tau=0.3)
  assert (float(ours.total), float(ours.weight)) == (2, 5)
  coefficient = rectification.dynamic_coefficient(logp, tau=0.3)
  assert int((coefficient < 1)[MASK].sum()) == 2
  nothing = jnp.where(MASK, logp, jnp.nan)
  assert diagnostics.rectified_fraction(nothing, MASK, tau=0.3) == ours


def test_effective_groups():
  rewards = jnp.array([[1.0, 0], [1, 1], [1, np.nan], [0, 1], [0, 1]])
  members = jnp.array([[1, 1], [1, 1], [1, 0], [0, 0], [1, 1]], bool)
  ours = diagnostics.effective_groups(rewards, members)
  assert (float(ours.total), float(ours.weight)) == (2, 4)
  parts = [diagnostics.effective_groups(*row) for row in zip(rewards, members)]
  assert sum(parts) == ours


V, T, END = 3, 3, 0


def sequences():
  """Every answer over V tokens: ends with END, or is cut after T tokens."""
  for count in range(1, T + 1):
    for body in itertools.product(range(1, V), repeat=count - 1):
      yield (*body, END)
  yield from itertools.product(range(1, V), repeat=T)


def log_probability(table, answer):
  """log π(y) where table[t][last token] is the distribution of token t."""
  return sum(
    jax.nn.log_softmax(table[t, answer[t - 1] if t else END])[token]
    for t, token in enumerate(answer)
  )


@pytest.mark.parametrize('expert', [(2, 1, END), (1, 2, 2), (END,)])
def test_sft_is_a_policy_gradient_with_a_sparse_reward_and_weight_1_over_p(
  expert,
):
  """The paper's identity (section 2, appendix A), by exact enumeration.

  E_{y ~ π}[1[y = y*] / π(y) ∇log π(y)] = ∇log π(y*), where the expectation
  runs over every answer there is.
  """
  table = jax.random.normal(jax.random.key(0), (T, V, V))
  answers = list(sequences())

  @jax.jit
  def everything(table):
    logp = jnp.stack([log_probability(table, y) for y in answers])
    scores = jax.jacobian(
      lambda table: jnp.stack([log_probability(table, y) for y in answers])
    )(table)
    return logp, scores

  logp, scores = everything(table)
  p = jnp.exp(logp)
  assert_allclose(p.sum(), 1, rtol=1e-6)  # Nothing is left out.

  width = max(len(y) for y in answers)
  padded = jnp.array([[*y, *[9] * (width - len(y))] for y in answers])
  star = jnp.array([*expert, *[7] * (width - len(expert))])
  reward = diagnostics.implicit_reward(
    padded,
    jnp.array([len(y) for y in answers]),
    jnp.broadcast_to(star, padded.shape),
    jnp.full(len(answers), len(expert)),
  )
  assert reward.sum() == 1
  weight = diagnostics.inverse_probability(logp)
  policy_gradient = -jnp.einsum('n,nabc->abc', p * reward * weight, scores)

  def sft(table):
    logp = jnp.stack(
      [
        jax.nn.log_softmax(table[t, expert[t - 1] if t else END])[token]
        for t, token in enumerate(expert)
      ]
    )[None]
    everywhere = jnp.ones(logp.shape, bool)
    return masking.token_sum(losses.sft_token_loss(logp), everywhere).value

  assert_allclose(policy_gradient, jax.grad(sft)(table), rtol=1e-5, atol=1e-6)


def test_is_clipped():
  """r = 1.5 under A > 0, 0.5 under A > 0, 0.5 under A < 0, 4 under A < 0, A = 0."""
  ratio = jnp.array([[1.5], [0.5], [0.5], [4.0], [1.5]])
  ours = diagnostics.is_clipped(
    jnp.log(ratio) - 1,
    jnp.full(ratio.shape, -1.0),
    jnp.array([1.0, 1.0, -1.0, -1.0, 0.0]),
    clip_low=0.2,
    clip_high=0.2,
    dual_clip=3.0,
  )
  assert ours[:, 0].tolist() == [1, 0, 1, 1, 0]


@pytest.mark.parametrize('chunk', [2, 100])
def test_token_gradients_are_those_of_sft_by_the_hidden_state(chunk):
  bits = np.random.default_rng(0)
  hidden = jnp.asarray(bits.normal(size=(2, 3, 4)), jnp.float32)
  head = jnp.asarray(bits.normal(size=(4, 7)), jnp.float32)
  targets = jnp.asarray(bits.integers(0, 7, (2, 3)))

  def sft(hidden):
    logq = jax.nn.log_softmax(hidden @ head)
    return -jnp.take_along_axis(logq, targets[..., None], axis=-1).sum()

  norm, likeliest = diagnostics.token_gradients(
    hidden, head, targets, chunk=chunk
  )
  expected = jnp.linalg.norm(jax.grad(sft)(hidden), axis=-1)
  assert_allclose(norm, expected, rtol=1e-5)
  assert (likeliest == (hidden @ head).argmax(axis=-1)).all()


def test_top_share():
  values = jnp.array([1.0, 5.0, 2.0, 2.0])
  assert_allclose(diagnostics.top_share(values, share=0.25), 0.5)
  assert_allclose(diagnostics.top_share(values, share=0.26), 0.7)
  assert_allclose(diagnostics.top_share(values, share=0.001), 0.5)
  assert diagnostics.top_share(jnp.zeros(3), share=0.5) == 0


def test_jit():
  ours = jax.jit(diagnostics.effective_groups)(P, MASK)
  assert float(ours.value) == 1
