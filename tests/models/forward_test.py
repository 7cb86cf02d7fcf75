import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.batch import SELF, GroupBatch, Prompts, Responses
from gft_jax.config import Architecture
from gft_jax.models import forward
from gft_jax.models.transformer import Transformer


def test_drift_is_exact_over_the_vocabulary():
  """Against dense log-softmax and loops over tokens."""
  vocabulary, length = 11, np.array([[3], [1], [0]])
  model = Transformer(Architecture(vocab_size=vocabulary, width=16, layers=1))
  rng = np.random.default_rng(0)
  batch = GroupBatch(
    prompts=Prompts(
      jnp.asarray(rng.integers(0, vocabulary, (3, 4)), jnp.int32),
      jnp.array([4, 2, 1]),
      jnp.arange(3),
    ),
    responses=Responses(
      jnp.asarray(rng.integers(0, vocabulary, (3, 1, 5)), jnp.int32),
      jnp.asarray(length),
      jnp.zeros((3, 1, 5)),
    ),
    rewards=jnp.zeros((3, 1)),
    origin=jnp.full((3, 1), SELF),
    member_mask=jnp.asarray(length > 0),
  )
  policy, base = (
    jax.tree.map(
      lambda x: 3 * x,
      model.init(
        jax.random.key(seed), batch.prompts.tokens, batch.prompts.length
      )['params'],
    )
    for seed in (0, 1)
  )

  def dense(params):
    variables = {'params': params}
    prefix = model.apply(
      variables, batch.prompts.tokens, batch.prompts.length, method='prefill'
    )
    hidden = model.apply(
      variables, prefix, batch.responses.tokens, method='respond'
    )
    head = model.apply(variables, method='head')
    return np.asarray(jax.nn.log_softmax(hidden @ head), np.float64)

  p, q = dense(policy), dense(base)
  rows = [(b, t) for b in range(3) for t in range(length[b, 0])]
  kl = [np.sum(np.exp(p[b, 0, t]) * (p[b, 0, t] - q[b, 0, t])) for b, t in rows]
  entropy = [-np.sum(np.exp(p[b, 0, t]) * p[b, 0, t]) for b, t in rows]
  found = forward.drift(model, policy, base, batch, chunk=2)
  assert found['kl_to_base'].value == pytest.approx(np.mean(kl), rel=1e-4)
  assert found['entropy'].value == pytest.approx(np.mean(entropy), rel=1e-4)
  per_response = sum(kl) / 2  # The third slot is empty.
  assert found['kl_to_base_per_response'].value == pytest.approx(
    per_response, rel=1e-4
  )
  same = forward.drift(model, policy, policy, batch, chunk=2)
  assert float(same['kl_to_base'].value) == 0.0
