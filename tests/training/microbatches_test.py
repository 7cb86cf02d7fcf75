"""Gradients and metrics that add up, in whole steps."""

import chex
import numpy as np
import pytest
from steps import run, update_of


@pytest.mark.parametrize('reduction', ['token_mean', 'sequence_mean'])
@pytest.mark.parametrize('micro_batches', [2, 4])
def test_micro_batches_add_exactly(
  model, params, batch, reduction, micro_batches
):
  """Unequal lengths: a mean of micro-batch means would differ by percents."""
  whole = run(model, params, batch, 'gft', reduction=reduction)
  parts = run(
    model,
    params,
    batch,
    'gft',
    reduction=reduction,
    micro_batches=micro_batches,
  )
  chex.assert_trees_all_close(
    update_of(params, whole[0]), update_of(params, parts[0]), atol=2e-6
  )
  for name, mean in whole[1].items():
    np.testing.assert_allclose(mean.value, parts[1][name].value, rtol=2e-5)
  for name, value in whole[2].items():
    np.testing.assert_allclose(value, parts[2][name], rtol=2e-5)


@pytest.mark.parametrize('objective', ['luffy', 'chord_phi'])
def test_micro_batches_add_where_a_loss_has_several_denominators(
  model, params, batch, objective
):
  whole, parts = (
    run(model, params, batch, objective, micro_batches=n) for n in (1, 2)
  )
  chex.assert_trees_all_close(
    update_of(params, whole[0]),
    update_of(params, parts[0]),
    rtol=1e-4,
    atol=2e-5,
  )
  for name, mean in whole[1].items():
    np.testing.assert_allclose(mean.value, parts[1][name].value, rtol=2e-5)
