"""What the rows of OBJECTIVES see of a batch, made up."""

import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.batch import EXPERT, SELF, TEACHER
from gft_jax.config import LossConfig
from gft_jax.training import objectives
from gft_jax.training.objectives import OBJECTIVES

ROWS = pytest.mark.parametrize('name', OBJECTIVES)
B, G, T = 2, 4, 3
ORIGIN = np.array([[EXPERT, TEACHER, SELF, SELF]] * B)


def view(**changes):
  rng = np.random.default_rng(0)
  logp = -rng.exponential(size=(B, G, T)).astype('float32')
  mask = np.arange(T) < np.array([[3, 2, 1, 3], [1, 3, 2, 0]])[..., None]
  fields = {
    'logp': np.where(mask, logp, 0),
    'behavior_logp': np.where(mask, logp + 0.1, 0),
    'entropy': np.where(mask, 0.5, 0).astype('float32'),
    'advantages': rng.normal(size=(B, G)).astype('float32'),
    'origin': ORIGIN,
    'mask': mask,
    'end': np.zeros((B, G, T), bool),
    'step': np.int32(0),
  }
  fields = {k: jnp.asarray(v) for k, v in (fields | changes).items()}
  return objectives.View(**fields)


def resolved(name, **settings):
  """The settings of a loss, closed as a row closes them."""
  return objectives.resolve(LossConfig(**settings), OBJECTIVES[name])
