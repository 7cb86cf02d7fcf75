"""Shapes in signatures are checked while tests run, and only then."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shape_checks
from jaxtyping import Float, TypeCheckError, jaxtyped

from gft_jax.batch import GroupBatch, Prompts, Responses, length_mask
from gft_jax.ops import advantages, logprobs, losses, masking
from gft_jax.types import Array

B, G, T, D, V = 2, 3, 4, 5, 7
LOGP = jnp.full((B, G, T), -1.0)


def wrong_calls():
  """Each has one array that disagrees with the others."""
  head, hidden = jnp.ones((D, V)), jnp.ones((B, G, T, D))
  members = jnp.ones((B, G + 1), bool)
  return {
    'members of another G': lambda: advantages.group_normalized(
      jnp.ones((B, G)), members
    ),
    'advantages of another B': lambda: losses.gft_token_loss(
      LOGP, jnp.ones((B + 1, G)), tau=0.5
    ),
    'advantages of tokens': lambda: losses.gft_token_loss(LOGP, LOGP, tau=0.5),
    'targets of another T': lambda: logprobs.target_logprobs(
      hidden, head, jnp.zeros((B, G, T + 1), int), chunk=2
    ),
    'targets that are no integers': lambda: logprobs.target_logprobs(
      hidden, head, LOGP, chunk=2
    ),
    'a head of another width': lambda: logprobs.target_logprobs(
      hidden, jnp.ones((D + 1, V)), jnp.zeros((B, G, T), int), chunk=2
    ),
    'lengths that are no integers': lambda: length_mask(jnp.ones(B), T),
    'a mask that broadcasts': lambda: masking.token_mean(
      LOGP, jnp.ones((B, G, 1), bool)
    ),
    'logits as a list': lambda: losses.sft_token_loss([-1.0, -2.0]),
  }


@pytest.mark.parametrize('name', wrong_calls())
def test_a_wrong_shape_is_refused(name):
  with pytest.raises(TypeCheckError):
    wrong_calls()[name]()


def test_a_right_shape_is_not():
  mask = jnp.ones((B, G, T), bool)
  share = advantages.group_normalized(jnp.ones((B, G)), np.ones((B, G), bool))
  assert share.shape == (B, G)
  assert losses.gft_token_loss(LOGP, share, tau=0.5).shape == LOGP.shape
  assert masking.token_mean(LOGP, mask).value == -1
  assert length_mask(np.array([0, 3]), T).shape == (2, T)


def test_shapes_are_checked_while_jit_traces():
  loss = jax.jit(lambda a: losses.gft_token_loss(LOGP, a, tau=0.5))
  assert loss(jnp.ones((B, G))).shape == LOGP.shape
  with pytest.raises(TypeCheckError):
    loss(jnp.ones((B, G, T)))


def test_members_of_a_mapped_axis_are_checked_without_it():
  loss = jax.vmap(lambda l, a: losses.gft_token_loss(l, a, tau=0.5))
  assert loss(LOGP, jnp.ones((B, G))).shape == LOGP.shape
  with pytest.raises(TypeCheckError):
    loss(LOGP, LOGP)


def test_constructors_are_not_checked():
  """Batches also carry what describes their arrays, or nothing yet."""
  names = GroupBatch(
    Prompts('tokens', 'length', 'index'),
    Responses('tokens', 'length', 'logp'),
    'rewards',
    'origin',
    'members',
  )
  assert jax.tree.leaves(names)[0] == 'tokens'
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  placed = jax.tree.map(lambda _: device, names)
  assert placed.rewards is device
  assert placed.replace(rewards=None).rewards is None


def test_the_checker_leaves_constructors_alone():
  def __init__(self, x: int):
    """Of a dataclass."""

  def function(x: Float[Array, 'B G']):
    """Of a module."""

  assert shape_checks.check(__init__) is __init__
  with pytest.raises(TypeCheckError):
    jaxtyped(function, typechecker=shape_checks.check)(jnp.ones(3))


def test_a_run_pays_nothing():
  """Without pytest nothing is wrapped; chex still refuses what broadcasts."""
  script = (
    'import sys\n'
    'import jax.numpy as jnp\n'
    'from gft_jax.ops import losses, masking\n'
    'assert "beartype" not in sys.modules\n'
    'assert not hasattr(losses.gft_token_loss, "__wrapped__")\n'
    'losses.sft_token_loss(jnp.ones(()))\n'
    'try:\n'
    '  masking.token_mean(jnp.ones((2, 3)), jnp.ones((2, 1)))\n'
    'except AssertionError:\n'
    '  print("refused")\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True, check=True
  )
  assert done.stdout == 'refused\n'
