"""What a step measures, in whole steps."""

import jax.numpy as jnp
import numpy as np
import pytest
from steps import B, G, T, run

from gft_jax.batch import SELF
from gft_jax.models import forward
from gft_jax.ops import advantages


def test_largest_weight_is_bounded_by_tau_under_gft_and_not_under_sft(
  model, params, batch
):
  tau = 0.3
  a = advantages.group_normalized(batch.rewards, batch.member_mask)
  _, _, gft = run(model, params, batch, 'gft', tau=tau)
  _, _, sft = run(model, params, batch, 'sft')
  assert 0 < float(gft['max_weight']) <= float(jnp.abs(a).max()) / tau
  np.testing.assert_allclose(
    sft['max_weight'], sft['max_inverse_probability'], rtol=1e-6
  )


def test_metrics_by_origin(model, params, batch):
  _, metrics, _ = run(model, params, batch, 'gft')
  assert float(metrics['reward_expert'].value) == 0.75
  assert float(metrics['reward_teacher'].value) == 0.25
  assert float(metrics['reward_self'].value) == 0.0
  assert float(metrics['response_length_self'].value) == pytest.approx(8 / 3)
  assert float(metrics['zero_variance_groups'].value) == 0.25
  logp, _ = forward.token_logprobs(model, params, batch, chunk=64)
  mask = np.asarray(batch.token_mask)
  np.testing.assert_allclose(
    metrics['logp_teacher'].value,
    np.asarray(logp)[:, 1][mask[:, 1]].mean(),
    rtol=1e-5,
  )


def test_sft_has_no_reward_metrics(model, params, batch):
  _, metrics, _ = run(model, params, batch, 'sft')
  assert not [name for name in metrics if 'reward' in name]


@pytest.mark.parametrize('behavior', ['sampler', 'recomputed'])
@pytest.mark.parametrize('mini_batches', [1, 2])
def test_the_mismatch_of_sampler_and_step_is_measured(
  model, params, batch, behavior, mini_batches
):
  """On own tokens, before the first update of the step."""
  _, metrics, _ = run(
    model,
    params,
    batch,
    'grpo',
    behavior=behavior,
    mini_batches=mini_batches,
    temperature=0.8,
  )
  if behavior == 'sampler' and mini_batches == 2:
    # The second mini-batch meets a policy that has moved.
    assert 'sampler_mismatch' not in metrics
    return
  logp, _ = forward.token_logprobs(
    model, params, batch, chunk=64, temperature=0.8
  )
  differences = [
    abs(float(logp[b, g, t] - batch.responses.behavior_logp[b, g, t]))
    for b, g, t in np.ndindex(B, G, T)
    if batch.token_mask[b, g, t] and batch.origin[b, g] == SELF
  ]
  np.testing.assert_allclose(
    metrics['sampler_mismatch'].value, np.mean(differences), rtol=1e-5
  )
