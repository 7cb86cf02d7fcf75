import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gft_jax.config import OptimizerConfig
from gft_jax.training.optimizer import make_optimizer, make_schedule


@pytest.mark.parametrize(
  ('settings', 'expected'),
  [
    ({}, {0: 1.0, 5: 1.0, 100: 1.0}),
    ({'warmup_steps': 4}, {0: 0.0, 1: 0.25, 4: 1.0, 9: 1.0}),
    ({'schedule': 'cosine'}, {0: 1.0, 5: 0.51, 10: 0.02, 12: 0.02}),
    (
      {'schedule': 'cosine', 'warmup_steps': 2},
      {0: 0.0, 1: 0.5, 2: 1.0, 6: 0.51, 10: 0.02},
    ),
  ],
)
def test_schedule(settings, expected):
  schedule = make_schedule(OptimizerConfig(learning_rate=2.0, **settings), 10)
  for step, factor in expected.items():
    assert float(schedule(step)) == pytest.approx(2 * factor, abs=1e-6)


def test_the_gradient_is_clipped_by_its_global_norm_unless_switched_off():
  """Seen through Adam's first moment: (1 - b1) times the clipped gradient."""
  params = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
  grads = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array([4.0])}
  for clip_norm, factor in ((1.0, 0.2), (10.0, 1.0), (0.0, 1.0)):
    optimizer = make_optimizer(OptimizerConfig(clip_norm=clip_norm), 10)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    (adam,) = optax.tree.get_all_with_path(state, 'mu')
    np.testing.assert_allclose(adam[1]['b'], [0.1 * 4 * factor], rtol=1e-5)


def test_a_first_moment_in_bfloat16_takes_half_the_bytes_and_steps_alike():
  params = {'a': jnp.linspace(-1, 1, 64)}
  grads = {'a': jnp.cos(jnp.arange(64.0))}
  updates = {}
  for dtype in ('float32', 'bfloat16'):
    optimizer = make_optimizer(OptimizerConfig(mu_dtype=dtype), 10)
    state = optimizer.init(params)
    for _ in range(5):
      updates[dtype], state = optimizer.update(grads, state, params)
    (mu,) = optax.tree.get_all_with_path(state, 'mu')
    (nu,) = optax.tree.get_all_with_path(state, 'nu')
    assert mu[1]['a'].dtype == dtype
    assert nu[1]['a'].dtype == jnp.float32
  # bfloat16 keeps 8 bits of a number: 2^-8 each time it is stored.
  np.testing.assert_allclose(
    updates['bfloat16']['a'], updates['float32']['a'], rtol=5 * 2**-8
  )
