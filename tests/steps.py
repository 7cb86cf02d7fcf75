"""Training steps of a tiny model, and its log-probabilities in full."""

import jax
import jax.numpy as jnp
import optax

from gft_jax.config import LossConfig
from gft_jax.models.forward import response_states
from gft_jax.training import objectives, train_step

B, G, P, T, V = 4, 3, 5, 6, 19


def run(
  model,
  params,
  batch,
  objective,
  *,
  optimizer=None,
  reference=None,
  **settings,
):
  """A step of an objective by its name: state, metrics, maxima."""
  options = {
    k: settings.pop(k)
    for k in ('temperature', 'mini_batches', 'micro_batches')
    if k in settings
  }
  step = train_step.make_train_step(
    model,
    objectives.OBJECTIVES[objective],
    LossConfig(chunk=7, **settings),
    **options,
  )
  state = train_step.create_state(model, params, optimizer or optax.sgd(1.0))
  return jax.jit(step)(state, batch, reference)


def update_of(params, state):
  """The gradient, where the optimizer is plain SGD at rate 1."""
  return jax.tree.map(lambda a, b: a - b, params, state.params)


def dense(model, params, batch):
  """[B, G, T, V] log-probabilities, the array that the product never makes."""
  hidden, head = response_states(model, params, batch)
  return jax.nn.log_softmax(hidden @ head)


def chosen(logq, batch):
  tokens = batch.responses.tokens[..., None]
  return jnp.take_along_axis(logq, tokens, axis=-1)[..., 0]


def mean_of(values, batch):
  return jnp.where(batch.token_mask, values, 0).sum() / batch.token_mask.sum()
