import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from gft_jax.config import MeshConfig
from gft_jax.ops import advantages, losses, masking
from gft_jax.parallel import mapped_loss, sharding
from gft_jax.parallel.mesh import make_mesh

TAU = 0.4
COLLECTIVES = 'all-reduce|all-gather|all-to-all|collective-permute|reduce-scat'


def inputs(batch=16, group=4, tokens=6):
  """Unequal masks: the first prompts have no token, later ones more."""
  bits = np.random.default_rng(0)
  member_mask = bits.random((batch, group)) < 0.8
  share = np.linspace(0, 1, batch)[:, None, None]
  token_mask = bits.random((batch, group, tokens)) < share
  token_mask &= member_mask[..., None]
  logp = -bits.exponential(size=(batch, group, tokens)).astype('float32')
  rewards = bits.integers(0, 2, (batch, group)).astype('float32')
  return (
    jnp.where(token_mask, logp, -jnp.inf),
    jnp.where(member_mask, rewards, jnp.nan),
    jnp.array(member_mask),
    jnp.array(token_mask),
  )


def on_devices(x):
  return x.reshape(8, x.shape[0] // 8, *x.shape[1:])


MAPPED = {
  'pmap': lambda *args: mapped_loss.pmapped_gft_loss(
    *map(on_devices, args), tau=TAU
  ),
  'shard_map': lambda *args: mapped_loss.shard_mapped_gft_loss(
    make_mesh(MeshConfig(data=4, fsdp=2)), *args, tau=TAU
  ),
}


@pytest.mark.parametrize('name', MAPPED)
def test_mapped_loss_equals_the_jitted_one_and_so_does_its_gradient(name):
  logp, *rest = inputs()
  single = jax.jit(
    jax.value_and_grad(lambda logp: mapped_loss.gft_loss(logp, *rest, tau=TAU))
  )
  value, gradient = single(logp)
  mapped, mapped_gradient = jax.jit(
    jax.value_and_grad(lambda logp: MAPPED[name](logp, *rest))
  )(logp)
  assert mapped.shape == ()
  assert_allclose(mapped, value, rtol=1e-6)
  assert_allclose(mapped_gradient, gradient, rtol=1e-6, atol=1e-9)
  assert float(value) and jnp.isfinite(mapped_gradient).all()
  assert gradient.any()
  # A mean over the devices' own means would be another number.
  means = jax.jit(jax.vmap(lambda *args: mapped_loss.gft_loss(*args, tau=TAU)))(
    *map(on_devices, (logp, *rest))
  )
  assert abs(float(value) - np.mean(means)) > 1e-3


def test_pmapped_loss_is_traced_once(monkeypatch):
  traces = []

  def counted(*args, body=mapped_loss._on_device):
    traces.append(1)
    return body(*args)

  monkeypatch.setattr(mapped_loss, '_on_device', counted)
  args = [on_devices(x) for x in inputs()]
  losses_by_tau = [
    float(mapped_loss.pmapped_gft_loss(*args, tau=tau))
    for tau in (0.0, 0.5, 1.0)
  ]
  assert len(traces) == 1
  assert len(set(losses_by_tau)) == 3


def compiled_text(function, *args):
  return jax.jit(function).lower(*args).compile().as_text()


def sharded_inputs():
  mesh = make_mesh(MeshConfig(data=4, fsdp=2))
  return jax.device_put(inputs(), sharding.batch_sharding(mesh))


def test_advantage_and_rectification_need_no_collective():
  """B is sharded and a group is not: only the sums of the mean travel."""

  def token_losses(logp, rewards, member_mask, token_mask):
    a = advantages.group_normalized(rewards, member_mask)
    logp = masking.select(logp, token_mask)
    return losses.gft_token_loss(logp, a, tau=TAU)

  def loss(*args):
    return mapped_loss.gft_loss(*args, tau=TAU)

  args = sharded_inputs()
  assert not args[0].sharding.is_fully_replicated
  assert not re.search(COLLECTIVES, compiled_text(token_losses, *args))
  found = re.findall(
    rf' ({COLLECTIVES})\w*(?:-start)?\(', compiled_text(loss, *args)
  )
  assert found and set(found) == {'all-reduce'}
