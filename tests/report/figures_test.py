import numpy as np

from gft_jax.report import figures


def test_smoothing_is_a_mean_and_keeps_constants():
  assert np.allclose(figures._smooth(np.full(100, 3.0)), 3)
  ramp = figures._smooth(np.arange(100.0))
  np.testing.assert_allclose(ramp[50], 50)
  np.testing.assert_allclose(ramp[0], np.arange(6).mean())
  assert figures._smooth(np.array([7.0])).tolist() == [7]


def test_shares_of_weights_add_to_one_at_the_edges_too():
  edges = np.array([1.0, 10.0, 100.0])
  weights = np.array([0.99, 1.0, 9.0, 10.0, 100.0, 1e9])
  assert figures._shares(weights, edges).tolist() == [0.5, 0.5]
