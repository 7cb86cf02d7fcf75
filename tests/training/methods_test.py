"""Methods: what their docstrings say, and how they meet each other."""

import re

import jax.numpy as jnp
import numpy as np
from views import ORIGIN, ROWS, B, G, T, resolved, view

from gft_jax.batch import SELF
from gft_jax.training.objectives import OBJECTIVES


@ROWS
def test_docstrings_name_source_published_values_and_unlikely_tokens(
  name,
):
  text = ' '.join(OBJECTIVES[name].terms.__doc__.split())
  for part in ('Source: ', 'Published: ', 'Unlikely token: '):
    assert text.count(part) == 1, part
  source = text.split('Source: ')[1].split('Published: ')[0]
  assert re.search(r'at [0-9a-f]{7}\b|as `|Table 2', source)
  assert re.search(r'arXiv \d{4}\.\d{5}|at [0-9a-f]{7}\b|as `', source)


def test_chord_starts_as_imitation_and_ends_as_reward():
  """µ at 0 and after its decay, as the share of each term."""
  settings = resolved('chord_mu')
  for step, mu in ((0, 0.9), (10**6, 0.05)):
    own, given = OBJECTIVES['chord_mu'].terms(
      view(step=np.int32(step)), settings
    )
    np.testing.assert_allclose(own.coefficient, 1 - mu, rtol=1e-6)
    np.testing.assert_allclose(given.coefficient, mu, rtol=1e-6)
    assert (own.mask == view().own).all() and (given.mask == view().given).all()


def test_hybrid_rows_weigh_given_tokens_by_shape_and_own_ones_by_ratio():
  settings = resolved('luffy')
  (term,) = OBJECTIVES['luffy'].terms(view(), settings)
  seen = view()
  p, a = jnp.exp(seen.logp), seen.advantages[..., None]
  expected = jnp.where(
    (ORIGIN == SELF)[..., None], -a * jnp.exp(-0.1), -a * p / (p + 0.1)
  )
  trained = np.asarray(seen.mask)
  np.testing.assert_allclose(term.values[trained], expected[trained], rtol=1e-5)


def test_ablations_of_gft_meet_sft():
  """Without DCR and GAL the loss is SFT's; each alone is half way."""
  everything = view()
  given = everything._replace(mask=everything.given)
  (sft,) = OBJECTIVES['sft'].terms(given, resolved('sft'))
  (no_gal,) = OBJECTIVES['gft_no_gal'].terms(given, resolved('gft', tau=0.0))
  np.testing.assert_allclose(no_gal.values, sft.values)
  ones = given._replace(advantages=jnp.ones((B, G)))
  (no_dcr,) = OBJECTIVES['gft_no_dcr'].terms(ones, resolved('gft'))
  np.testing.assert_allclose(no_dcr.values, sft.values)
  (gft,) = OBJECTIVES['gft'].terms(ones, resolved('gft', tau=0.7))
  (dcr,) = OBJECTIVES['gft_no_gal'].terms(given, resolved('gft', tau=0.7))
  np.testing.assert_allclose(dcr.values, gft.values)
  assert (gft.values < sft.values).any()


def test_the_end_token_is_not_rectified_on_request():
  end = np.zeros((B, G, T), bool)
  end[:, :, 0] = True
  for name in ('dft', 'gft', 'gft_no_gal', 'asft'):
    row = OBJECTIVES[name]
    on, off = (
      row.terms(view(end=end), resolved(name, rectify_end=rectify))[0].values
      for rectify in (True, False)
    )
    assert (on[..., 1:] == off[..., 1:]).all()
    assert (jnp.abs(off[..., 0]) >= jnp.abs(on[..., 0])).all()
    assert (off[..., 0] != on[..., 0]).any()
