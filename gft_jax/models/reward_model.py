"""A reward model: a decoder whose last state is read as one number.

The prompt is computed once per group here too: the scores of G answers come
from one prefix. Hugging Face calls this sequence classification with one label.
Parameters are those of a Transformer without a head, and `score` [D, 1].
"""

import jax
import jax.numpy as jnp
from flax.training.train_state import TrainState
from jaxtyping import Float, Key

from gft_jax.batch import GroupBatch
from gft_jax.models.forward import response_states
from gft_jax.ops import masking
from gft_jax.ops.losses import preference_loss
from gft_jax.ops.masking import WeightedMean
from gft_jax.types import Array, Model, Params


def init(key: Key[jax.Array, ''], backbone: Params) -> Params:
  """Parameters on top of those of a policy, whose own head is left out.

  The new head is normal with variance 1 / (D + 1) (Stiennon et al. 2020,
  arXiv 2009.01325, appendix B).

  Args:
    key: of the new head.
    backbone: parameters of a `Transformer`.
  """
  embedding = _leaf(backbone, 'embedding')
  width = embedding.shape[1]
  score = jax.random.normal(key, (width, 1), embedding.dtype)
  kept = {name: x for name, x in backbone.items() if name != 'head'}
  return kept | {'score': score / jnp.sqrt(width + 1.0)}


def scores(
  model: Model, params: Params, batch: GroupBatch
) -> Float[Array, 'B G']:
  """What the state after the last token of each answer is worth.

  Args:
    model: the Transformer of the backbone, with a tied head.
    params: of `init`, or of a sequence-classification folder.
    batch: answers with their EOS; rewards are not used.

  Returns:
    float32. Without an answer it is the score of the prompt.
  """
  responses = batch.responses
  # The state after token t stands at t + 1, so there is one more.
  room = ((0, 0), (0, 0), (0, 1))
  tokens = jnp.pad(responses.tokens, room)
  padded = batch.replace(responses=responses.replace(tokens=tokens))
  hidden, _ = response_states(model, params, padded)
  last = jnp.take_along_axis(hidden, responses.length[..., None, None], axis=2)[
    :, :, 0
  ]
  score = _leaf(params, 'score').astype(jnp.float32)
  return (last.astype(jnp.float32) @ score)[..., 0]


def compare(
  model: Model, params: Params, batch: GroupBatch
) -> dict[str, WeightedMean]:
  """How the model judges pairs: the loss and how often it is right.

  Args:
    model: see `scores`.
    params: see `scores`.
    batch: groups of two, the chosen answer before the rejected one; a pair
      without answers counts nothing.

  Returns:
    loss: the mean of `ops.losses.preference_loss`.
    accuracy: share of pairs whose chosen answer has the higher score.
    margin: mean difference of the two scores.
  """
  chosen, rejected = scores(model, params, batch).T
  real = jnp.all(batch.member_mask, axis=1)

  def mean(values):
    return masking.token_mean(masking.select(values, real), real)

  return {
    'loss': mean(preference_loss(chosen, rejected)),
    'accuracy': mean((chosen > rejected).astype(jnp.float32)),
    'margin': mean(chosen - rejected),
  }


def update(
  state: TrainState, batch: GroupBatch, *, model: Model
) -> tuple[TrainState, dict[str, WeightedMean]]:
  """One optimizer step on pairs; see `compare`. Pure."""

  def loss_of(params):
    metrics = compare(model, params, batch)
    return metrics['loss'].value, metrics

  grads, metrics = jax.grad(loss_of, has_aux=True)(state.params)
  return state.apply_gradients(grads=grads), metrics


def _leaf(params: Params, name: str) -> Array:
  leaf = params[name]
  assert isinstance(leaf, Array), f'{name} is a tree'
  return leaf
