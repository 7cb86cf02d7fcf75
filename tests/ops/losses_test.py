"""Token losses, the coefficient, and how the objectives relate."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jaxtyping import TypeCheckError
from numpy.testing import assert_allclose

from gft_jax.ops import losses, masking, rectification
from gft_jax.parallel import mapped_loss

P = [[0.9, 0.6, 0.3, 0.05], [0.5, 0.2, 0.95, 0.7]]
LOGP = np.log(P)
ADVANTAGES = [1.0, -0.5]


def test_coefficient():
  ours = rectification.dynamic_coefficient(jnp.array(LOGP), tau=0.4)
  expected = [[oracles.dynamic_coefficient(p, 0.4) for p in row] for row in P]
  assert expected[0] == [1.0, 1.0, 0.3, 0.05]
  assert_allclose(ours, expected, rtol=1e-6)


def test_coefficient_at_tau_is_p():
  """The code's p > tau, not the paper's p >= tau."""
  half = jnp.log(jnp.float32(0.5))
  assert jnp.exp(half) == 0.5
  assert rectification.dynamic_coefficient(half, tau=0.5) == 0.5


def test_weight_of_the_gradient_by_p_is_at_most_one_over_tau():
  """Figure 2: C / p."""
  p, tau = jnp.linspace(0.001, 1, 500), 0.25
  weight = -jax.vmap(
    jax.grad(
      lambda p: losses.gft_token_loss(
        jnp.log(p)[None], jnp.ones(()), tau=tau
      ).sum()
    )
  )(p)
  assert_allclose(weight, jnp.where(p > tau, 1 / p, 1), rtol=1e-5)
  assert weight.max() <= 1 / tau


def test_gft_gradient_is_minus_c_a_and_nothing_flows_into_c_or_a():
  tau, logp, a = 0.4, jnp.array(LOGP), jnp.array(ADVANTAGES)
  coefficient = rectification.dynamic_coefficient(logp, tau=tau)
  loss = lambda logp, a: losses.gft_token_loss(logp, a, tau=tau).sum()  # noqa: E731
  by_logp, by_advantage = jax.grad(loss, argnums=(0, 1))(logp, a)
  assert_allclose(by_logp, -coefficient * a[:, None], rtol=1e-6)
  assert not by_advantage.any()
  by_coefficient = jax.grad(
    lambda l: rectification.dynamic_coefficient(l, tau=tau).sum()
  )(logp)
  assert not by_coefficient.any()


def value_and_grad(token_loss):
  mask = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]])
  loss = lambda l: masking.token_mean(token_loss(l), mask).value  # noqa: E731
  return jax.jit(jax.value_and_grad(loss))(jnp.array(LOGP))


# tau is static: each value compiles its own.
gft_loss = jax.jit(mapped_loss.gft_loss, static_argnames='tau')
gft_value_and_grad = jax.jit(
  jax.value_and_grad(mapped_loss.gft_loss), static_argnames='tau'
)


def same(a, b):
  jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=1e-6), a, b)


def test_tau_zero_is_advantage_weighted_sft():
  a = jnp.array(ADVANTAGES)
  same(
    value_and_grad(lambda l: losses.gft_token_loss(l, a, tau=0.0)),
    value_and_grad(lambda l: a[:, None] * losses.sft_token_loss(l)),
  )


def test_tau_one_is_advantage_weighted_dft():
  a = jnp.array(ADVANTAGES)
  same(
    value_and_grad(lambda l: losses.gft_token_loss(l, a, tau=1.0)),
    value_and_grad(lambda l: a[:, None] * losses.dft_token_loss(l)),
  )


def test_one_expert_with_unit_advantage_is_sft():
  """|G| = 1: A = 1 / (1 + 1e-6)."""
  logp = jnp.array(LOGP)[:, None]
  everything = jnp.ones(logp.shape)
  ours = gft_value_and_grad(
    logp, jnp.ones((2, 1)), jnp.ones((2, 1)), everything, tau=0.0
  )
  sft = jax.value_and_grad(
    lambda l: masking.token_mean(losses.sft_token_loss(l), everything).value
  )(logp)
  jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=2e-6), ours, sft)


def test_sft_and_dft_gradients():
  logp = jnp.array(LOGP)
  assert_allclose(losses.sft_token_loss(logp), -logp)
  by_logp = jax.grad(lambda l: losses.dft_token_loss(l).sum())(logp)
  assert_allclose(by_logp, -np.array(P), rtol=1e-6)


def gft_inputs():
  bits = np.random.default_rng(1)
  tokens = bits.random((3, 4, 5)) < 0.6
  return (
    -bits.exponential(size=(3, 4, 5)).astype('float32'),
    bits.integers(0, 2, (3, 4)).astype('float32'),
    np.array([[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 0, 0]], bool),
    tokens & np.array([[[1]] * 4, [[1]] * 4, [[1]] * 4], bool),
  )


@pytest.mark.parametrize('tau', [0.0, 0.3, 1.0])
def test_the_papers_loss_against_the_oracle(tau):
  inputs = gft_inputs()
  value, gradient = gft_value_and_grad(*map(jnp.asarray, inputs), tau=tau)
  expected, expected_gradient = oracles.gft_loss(
    *(x.tolist() for x in inputs), tau
  )
  assert_allclose(value, expected, rtol=1e-5)
  assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('bad', [-np.inf, np.nan])
def test_the_papers_loss_ignores_what_is_masked(bad):
  logp, rewards, members, tokens = map(jnp.asarray, gft_inputs())
  both = [
    gft_value_and_grad(l, r, members, tokens, tau=0.3)
    for l, r in (
      (logp, rewards),
      (jnp.where(tokens, logp, bad), jnp.where(members, rewards, bad)),
    )
  ]
  jax.tree.map(np.testing.assert_array_equal, *both)
  assert jnp.isfinite(both[1][1]).all()


def test_a_masked_batch_is_the_compressed_batch():
  logp, rewards, members, tokens = gft_inputs()
  keep = [0, 1, 3]
  row = [jnp.asarray(x[1:2]) for x in (logp, rewards, members, tokens)]
  row[3] &= row[2][..., None]
  compressed = [x[:, jnp.array(keep)] for x in row]
  assert members[1].tolist() == [True, True, False, True]
  assert_allclose(
    gft_loss(*row, tau=0.3),
    gft_loss(*compressed, tau=0.3),
    rtol=1e-6,
  )


def test_bfloat16():
  logp = jnp.array(LOGP, jnp.bfloat16)
  for loss in (
    losses.sft_token_loss,
    losses.dft_token_loss,
    lambda l: losses.gft_token_loss(
      l, jnp.array(ADVANTAGES, jnp.bfloat16), tau=0.4
    ),
  ):
    assert loss(logp).dtype == jnp.bfloat16
    assert_allclose(
      loss(logp).astype('float32'),
      loss(logp.astype('float32')).astype('float32'),
      rtol=0.02,
    )


@pytest.mark.parametrize('dual_clip', [None, 3.0])
@pytest.mark.parametrize('advantage', [1.0, -0.5])
def test_grpo_oracle(advantage, dual_clip):
  ratios = [-30.0, -1.0, -0.1, 0.0, 0.1, 0.25, 1.0, 1.5, 30.0]
  behavior = np.full(len(ratios), -1.0)
  ours = losses.grpo_token_loss(
    jnp.array(behavior + ratios),
    jnp.array(behavior),
    jnp.array(advantage),
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=dual_clip,
  )
  expected = [
    oracles.grpo_token_loss(b + x, b, advantage, 0.2, 0.28, dual_clip)
    for b, x in zip(behavior, ratios)
  ]
  assert_allclose(ours, expected, rtol=1e-5)
  if advantage < 0:
    largest = 0.5 * (math.exp(20) if dual_clip is None else dual_clip)
    assert_allclose(ours[-1], largest, rtol=1e-5)


def test_grpo_on_policy_gradient_is_minus_a():
  """Ratio 1 is a tie of the two branches, and both have the slope -A."""
  logp, a = jnp.array(LOGP), jnp.array(ADVANTAGES)

  def loss(logp, behavior, a):
    return losses.grpo_token_loss(
      logp, behavior, a, clip_low=0.2, clip_high=0.2
    ).sum()

  by_logp, by_behavior, by_a = jax.grad(loss, argnums=(0, 1, 2))(logp, logp, a)
  assert_allclose(by_logp, jnp.broadcast_to(-a[:, None], by_logp.shape))
  assert not by_behavior.any() and not by_a.any()


def test_one_advantage_per_response():
  with pytest.raises(TypeCheckError):
    losses.gft_token_loss(jnp.ones((2, 3)), jnp.ones((2, 3)), tau=0.5)


OLD = LOGP + np.array([[0.5, -0.1, -2.0, -25.0], [0.0, 0.2, 0.01, 0.3]])


def slopes(token_loss):
  return jax.grad(lambda l: token_loss(l).sum())(jnp.array(LOGP))


def test_psft_oracle_and_slope():
  loss = lambda l: losses.psft_token_loss(  # noqa: E731
    l, jnp.array(OLD), clip_high=0.28
  )
  expected = [
    [oracles.psft_token_loss(l, old, 0.28) for l, old in zip(*rows)]
    for rows in zip(LOGP, OLD)
  ]
  assert_allclose(loss(jnp.array(LOGP)), expected, rtol=1e-5)
  ratio = np.exp(LOGP - OLD)
  assert_allclose(
    slopes(loss), np.where(ratio < 1.28, -ratio, 0), rtol=1e-5, atol=1e-8
  )


def test_psft_is_grpo_with_advantage_one():
  ones, old = jnp.ones(2), jnp.array(OLD)
  psft = value_and_grad(
    lambda l: losses.psft_token_loss(l, old, clip_high=0.28)
  )
  grpo = value_and_grad(
    lambda l: losses.grpo_token_loss(
      l, old, ones, clip_low=0.2, clip_high=0.28, dual_clip=10.0
    )
  )
  same(psft, grpo)


def test_first_update_of_psft_is_sft():
  logp = jnp.array(LOGP)
  assert_allclose(
    slopes(lambda l: losses.psft_token_loss(l, logp, clip_high=0.28)),
    slopes(losses.sft_token_loss),
  )


def test_luffy_oracle_and_slope():
  a, gamma = jnp.array(ADVANTAGES), 0.1
  loss = lambda l: losses.luffy_token_loss(l, a, shaping=gamma)  # noqa: E731
  expected = [
    [oracles.luffy_token_loss(l, x, gamma) for l in row]
    for row, x in zip(LOGP, ADVANTAGES)
  ]
  assert_allclose(loss(jnp.array(LOGP)), expected, rtol=1e-5)
  p = np.array(P)
  assert_allclose(
    slopes(loss),
    -np.array(a)[:, None] * gamma * p / (p + gamma) ** 2,
    rtol=1e-5,
  )


def test_luffy_learns_most_where_p_is_gamma():
  logp = jnp.log(jnp.linspace(0.01, 1, 100))
  slope = jax.grad(
    lambda l: losses.luffy_token_loss(l, jnp.ones(()), shaping=0.1).sum()
  )(logp)
  assert_allclose(jnp.exp(logp[jnp.argmin(slope)]), 0.1, rtol=1e-5)


def test_luffy_of_an_impossible_token_is_zero_and_finite():
  loss = lambda l: losses.luffy_token_loss(  # noqa: E731
    l, jnp.ones(()), shaping=0.1
  ).sum()
  value, slope = jax.value_and_grad(loss)(jnp.array([-200.0]))
  assert value == 0 and slope == 0


def test_chord_oracle_and_slope():
  expected = [[oracles.chord_token_loss(l) for l in row] for row in LOGP]
  assert_allclose(losses.chord_token_loss(jnp.array(LOGP)), expected, rtol=1e-5)
  p = np.array(P)
  assert_allclose(slopes(losses.chord_token_loss), -p * (1 - p), rtol=1e-5)


@pytest.mark.parametrize('schedule', [(0.5, 0.02, 20, 40), (0.9, 0.05, 0, 20)])
def test_chord_mu_oracle(schedule):
  names = ('peak', 'valley', 'warmup_steps', 'decay_steps')
  ours = jax.jit(
    lambda step: losses.chord_mu(step, **dict(zip(names, schedule)))
  )(jnp.arange(80))
  expected = [oracles.chord_mu(step, *schedule) for step in range(80)]
  assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


def test_kept_tokens_are_not_rectified():
  """They have SFT's slope times the advantage; the others stay as they are."""
  kept = jnp.array([[0, 0, 0, 1], [0, 0, 0, 0]], bool)
  a = jnp.array(ADVANTAGES)
  plain = slopes(lambda l: losses.gft_token_loss(l, a, tau=0.4))
  ours = slopes(lambda l: losses.gft_token_loss(l, a, tau=0.4, kept=kept))
  assert_allclose(ours, jnp.where(kept, -a[:, None], plain), rtol=1e-6)
  dft = slopes(lambda l: losses.dft_token_loss(l, kept=kept))
  assert_allclose(dft, jnp.where(kept, -1, -jnp.array(P)), rtol=1e-6)


def test_rectification_leaves_an_unlikely_end_unlikely_and_keeping_it_helps():
  """Gradient descent on the logits of one position, p(EOS) = 1e-3 at first.

  The slope by the logit is p (1 - p) with DFT or GFT and 1 - p when kept: the
  known failure of DFT-like losses, and the remedy `loss.rectify_end=false`.
  """
  start = jnp.log(jnp.array([[0.001, 0.5, 0.499]]))

  def learned(kept):
    def loss(logits):
      logp = jax.nn.log_softmax(logits)[:, 0]
      return losses.gft_token_loss(
        logp[None], jnp.ones(1), tau=0.7, kept=kept
      ).sum()

    step = lambda _, x: x - 0.5 * jax.grad(loss)(x)  # noqa: E731
    logits = jax.lax.fori_loop(0, 100, step, start)
    return float(jax.nn.softmax(logits)[0, 0])

  assert learned(None) < 0.002
  assert learned(jnp.array([[True]])) > 0.9
