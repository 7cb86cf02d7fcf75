"""A tiny model, and a batch with empty slots and unequal lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import B, G, P, T, V

from gft_jax.batch import EXPERT, SELF, TEACHER, GroupBatch, Prompts, Responses
from gft_jax.config import Architecture
from gft_jax.models.transformer import Transformer


@pytest.fixture(scope='module')
def model():
  return Transformer(Architecture(vocab_size=V, width=32, mlp_width=64))


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  length = np.array([[6, 2, 0], [1, 5, 3], [4, 4, 4], [6, 6, 1]])
  return GroupBatch(
    prompts=Prompts(
      tokens=jnp.asarray(rng.integers(0, V, (B, P)), jnp.int32),
      length=jnp.array([5, 1, 3, 4]),
      index=jnp.arange(B),
    ),
    responses=Responses(
      tokens=jnp.asarray(rng.integers(0, V, (B, G, T)), jnp.int32),
      length=jnp.asarray(length),
      behavior_logp=jnp.asarray(-rng.random((B, G, T)) * 3, jnp.float32),
    ),
    rewards=jnp.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0.0]]),
    origin=jnp.array([[EXPERT, TEACHER, SELF]] * B),
    member_mask=jnp.asarray(length > 0),
  )


@pytest.fixture(scope='module')
def params(model, batch):
  variables = model.init(
    jax.random.key(0), batch.prompts.tokens, batch.prompts.length
  )
  return jax.tree.map(lambda x: 2 * x, variables['params'])


@pytest.fixture(scope='module')
def reference(params):
  return jax.tree.map(lambda x: 0.7 * x + 0.01, params)
