"""Summands of the loss against dense log-probabilities, in whole steps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import chosen, dense, mean_of, run, update_of

from gft_jax.config import LossConfig
from gft_jax.training import objectives, train_step


def test_asft_is_dft_and_exact_kl_to_the_start(model, params, batch, reference):
  def expected(p):
    logq = dense(model, p, batch)
    logp, ref = chosen(logq, batch), dense(model, reference, batch)
    dft = -jax.lax.stop_gradient(jnp.exp(logp)) * logp
    kl = (jnp.exp(ref) * (ref - logq)).sum(axis=-1)
    return mean_of(dft + 0.1 * kl, batch)

  loss, grads = jax.jit(jax.value_and_grad(expected))(params)
  for micro_batches in (1, 2):
    state, metrics, _ = run(
      model,
      params,
      batch,
      'asft',
      reference=reference,
      micro_batches=micro_batches,
    )
    np.testing.assert_allclose(metrics['loss'].value, loss, rtol=1e-5)
    chex.assert_trees_all_close(update_of(params, state), grads, atol=2e-6)
  assert float(metrics['loss_kl'].value) > 0.01


def test_any_objective_can_add_entropy_and_an_estimated_kl(
  model, params, batch, reference
):
  def expected(p):
    logq = dense(model, p, batch)
    logp = chosen(logq, batch)
    ref = chosen(dense(model, reference, batch), batch)
    k3 = jnp.exp(ref - logp) - (ref - logp) - 1
    entropy = -(jnp.exp(logq) * logq).sum(axis=-1)
    return mean_of(-logp - 0.3 * entropy + 0.2 * k3, batch)

  loss, grads = jax.jit(jax.value_and_grad(expected))(params)
  state, metrics, _ = run(
    model,
    params,
    batch,
    'sft',
    reference=reference,
    entropy_bonus=0.3,
    kl_weight=0.2,
    kl='k3',
  )
  np.testing.assert_allclose(metrics['loss'].value, loss, rtol=1e-5)
  chex.assert_trees_all_close(update_of(params, state), grads, atol=5e-6)
  parts = [
    float(metrics[f'loss_{k}'].value) for k in ('policy', 'entropy', 'kl')
  ]
  assert parts[0] + -0.3 * parts[1] + 0.2 * parts[2] == pytest.approx(
    float(loss), rel=1e-5
  )


def test_a_kl_without_a_reference_is_refused(model, params, batch):
  with pytest.raises(ValueError, match=r'kl_weight needs .* reference'):
    run(model, params, batch, 'sft', kl_weight=0.1)


def test_a_value_may_depend_on_the_step(model, params, batch):
  """The view's step is one number, also where gradients are made."""

  def cooling(view, settings):
    return (
      objectives.Term(-view.logp * jnp.exp(-0.5 * (view.step + 1)), view.mask),
    )

  row = objectives.Objective(cooling, origins=(objectives.GIVEN,))
  step = train_step.make_train_step(model, row, LossConfig(chunk=7))
  state = train_step.create_state(model, params, optax.sgd(1.0))
  cooled, _, _ = jax.jit(step)(state, batch)
  sft, _, _ = run(model, params, batch, 'sft')
  chex.assert_trees_all_close(
    update_of(params, cooled),
    jax.tree.map(lambda g: np.exp(-0.5) * g, update_of(params, sft)),
    atol=2e-6,
  )
