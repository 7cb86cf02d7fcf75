"""Each formula means the same under every transformation of jax.

chex runs it with and without jit, and under pmap on 8 devices; below it, vmap
and shard_map over B.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax.sharding import AxisType, PartitionSpec

from gft_jax.ops import (
  advantages,
  diagnostics,
  divergences,
  logprobs,
  losses,
  masking,
  passk,
  rectification,
)
from gft_jax.parallel import mapped_loss

B, G, T, D, V = 8, 4, 5, 6, 7

_bits = np.random.default_rng(0)
LOGP = -_bits.exponential(size=(B, G, T)).astype('float32')
BEHAVIOR = LOGP + _bits.normal(size=(B, G, T)).astype('float32')
REWARDS = _bits.integers(0, 3, (B, G)).astype('float32')
MEMBERS = _bits.random((B, G)) < 0.8
TOKENS = (_bits.random((B, G, T)) < 0.6) & MEMBERS[..., None]
ADVANTAGES = _bits.normal(size=(B, G)).astype('float32')
HIDDEN = _bits.normal(size=(B, G, T, D)).astype('float32')
REFERENCE = _bits.normal(size=(B, G, T, D)).astype('float32')
HEAD = _bits.normal(size=(D, V)).astype('float32')
TARGETS = _bits.integers(0, V, (B, G, T))
CORRECT = _bits.integers(0, 9, (B, G))
VOTES = _bits.integers(-1, 2, (B, G))

# Every array has B in front, so that any of them can be mapped over.
FORMULAS = {
  'group_normalized': (advantages.group_normalized, (REWARDS, MEMBERS)),
  'mean_centred': (advantages.mean_centred, (REWARDS, MEMBERS)),
  'leave_one_out': (advantages.leave_one_out, (REWARDS, MEMBERS)),
  'majority_at_k': (
    lambda votes, correct: passk.majority_at_k(votes, correct > 4, 2),
    (VOTES, CORRECT),
  ),
  'dynamic_coefficient': (
    lambda logp: rectification.dynamic_coefficient(logp, tau=0.4),
    (LOGP,),
  ),
  'sft_token_loss': (losses.sft_token_loss, (LOGP,)),
  'dft_token_loss': (losses.dft_token_loss, (LOGP,)),
  'gft_token_loss': (
    lambda logp, a: losses.gft_token_loss(logp, a, tau=0.4),
    (LOGP, ADVANTAGES),
  ),
  'grpo_token_loss': (
    lambda logp, behavior, a: losses.grpo_token_loss(
      logp, behavior, a, clip_low=0.2, clip_high=0.3, dual_clip=3.0
    ),
    (LOGP, BEHAVIOR, ADVANTAGES),
  ),
  'psft_token_loss': (
    lambda logp, old: losses.psft_token_loss(logp, old, clip_high=0.28),
    (LOGP, BEHAVIOR),
  ),
  'luffy_token_loss': (
    lambda logp, a: losses.luffy_token_loss(logp, a, shaping=0.1),
    (LOGP, ADVANTAGES),
  ),
  'chord_token_loss': (losses.chord_token_loss, (LOGP,)),
  'chord_mu': (
    lambda step: losses.chord_mu(
      step, peak=0.9, valley=0.1, warmup_steps=2, decay_steps=5
    ),
    (CORRECT,),
  ),
  'split_normalized': (
    lambda rewards, members, own: advantages.group_normalized(
      rewards, members, baseline_mask=own
    ),
    (REWARDS, MEMBERS, CORRECT > 3),
  ),
  'overlong': (
    lambda length: advantages.overlong(length, limit=8, share=0.5),
    (CORRECT,),
  ),
  'is_clipped': (
    lambda logp, behavior, a: diagnostics.is_clipped(
      logp, behavior, a, clip_low=0.2, clip_high=0.3, dual_clip=3.0
    ),
    (LOGP, BEHAVIOR, ADVANTAGES),
  ),
  'target_logprobs': (
    lambda hidden, targets: logprobs.target_logprobs(
      hidden, HEAD, targets, chunk=7, temperature=0.8
    ),
    (HIDDEN, TARGETS),
  ),
  'token_gradients': (
    lambda hidden, targets: diagnostics.token_gradients(
      hidden, HEAD, targets, chunk=7
    ),
    (HIDDEN, TARGETS),
  ),
  'kl_to_reference': (
    lambda hidden, reference: divergences.kl_to_reference(
      hidden, HEAD, reference, HEAD, chunk=7
    ),
    (HIDDEN, REFERENCE),
  ),
  **{
    name: (estimator, (LOGP, BEHAVIOR))
    for name, estimator in divergences.ESTIMATORS.items()
  },
  'implicit_reward': (
    diagnostics.implicit_reward,
    (TARGETS // 6, TOKENS.sum(-1), TARGETS // 5, TOKENS.sum(-1)),
  ),
  'inverse_probability': (diagnostics.inverse_probability, (LOGP,)),
  'pass_at_k': (
    lambda correct: passk.pass_at_k(correct, 8, 3),
    (CORRECT,),
  ),
}

# These add over B as well: pmap sees copies, vmap a total per prompt.
REDUCTIONS = {
  **{
    name: (reduction, (LOGP, TOKENS))
    for name, reduction in masking.REDUCTIONS.items()
  },
  'rectified_fraction': (
    lambda logp, mask: diagnostics.rectified_fraction(logp, mask, tau=0.4),
    (LOGP, TOKENS),
  ),
  'effective_groups': (diagnostics.effective_groups, (REWARDS, MEMBERS)),
  'largest_inverse_probability': (
    diagnostics.largest_inverse_probability,
    (LOGP, TOKENS),
  ),
  'top_share': (
    lambda logp: diagnostics.top_share(-logp.ravel(), share=0.1),
    (LOGP,),
  ),
  'avg_at_k': (lambda c: passk.avg_at_k(c, 8), (CORRECT,)),
  'interval': (lambda c: passk.interval(c[:, 0] / 8), (CORRECT,)),
  'gft_loss': (
    lambda *args: mapped_loss.gft_loss(*args, tau=0.4),
    (LOGP, REWARDS, MEMBERS, TOKENS),
  ),
}


def close(ours, expected):
  chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-6)


def arrays(args):
  return [jnp.asarray(arg) for arg in args]


@functools.cache
def plain(name):
  """The formula called as it stands."""
  formula, args = (FORMULAS | REDUCTIONS)[name]
  return formula(*arrays(args))


def mesh():
  return jax.make_mesh((B,), ('b',), axis_types=(AxisType.Auto,))


class VariantsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
  @parameterized.parameters(*(FORMULAS | REDUCTIONS))
  def test_variant(self, name):
    # chex skips its pmap variant without a word on a single device.
    self.assertEqual(jax.device_count(), B)
    formula, args = (FORMULAS | REDUCTIONS)[name]
    close(self.variant(formula)(*arrays(args)), plain(name))


def test_the_pmap_variant_is_there_and_maps_over_eight_devices():
  names = [n for n in dir(VariantsTest) if n.startswith('test_variant')]
  pmapped = [n for n in names if n.endswith('_with_pmap')]
  assert len(pmapped) == len(FORMULAS | REDUCTIONS) == len(names) / 3
  seen = []

  class Probe(chex.TestCase):
    @chex.variants(with_pmap=True)
    def test(self):
      axis = lambda x: x + jax.lax.psum(1, 'i')  # noqa: E731
      seen.append(self.variant(axis)(jnp.zeros(())).item())

  case = next(n for n in dir(Probe) if n.startswith('test_') or n == 'test')
  Probe(case).debug()
  assert seen == [B]


@pytest.mark.parametrize('name', FORMULAS)
def test_vmap(name):
  formula, args = FORMULAS[name]
  close(jax.jit(jax.vmap(formula))(*arrays(args)), plain(name))


@pytest.mark.parametrize('name', FORMULAS)
def test_shard_map(name):
  formula, args = FORMULAS[name]
  spec = PartitionSpec('b')
  mapped = jax.shard_map(formula, mesh=mesh(), in_specs=spec, out_specs=spec)
  close(jax.jit(mapped)(*arrays(args)), plain(name))


# One problem has no interval to compare: `interval` is left out.
@pytest.mark.parametrize('name', [n for n in REDUCTIONS if n != 'interval'])
def test_vmap_of_reductions(name):
  formula, args = REDUCTIONS[name]
  args = arrays(args)
  each = jax.jit(formula)
  rows = [each(*(arg[b] for arg in args)) for b in range(B)]
  stacked = jax.tree.map(lambda *xs: np.stack(xs), *rows)
  close(jax.jit(jax.vmap(formula))(*args), stacked)


@pytest.mark.parametrize('name', masking.REDUCTIONS)
def test_reductions_add_unequal_devices_exactly(name):
  """Masks per device of 0, 1, ... tokens; a mean of means would be wrong."""
  reduction = masking.REDUCTIONS[name]
  counts = np.arange(B)[:, None, None] * G * T // B
  mask = jnp.asarray(np.arange(G * T).reshape(1, G, T) < counts)
  values = jnp.where(mask, jnp.asarray(LOGP), jnp.nan)
  whole = reduction(values, mask)
  assert float(mask.sum()) and not mask[0].any()

  def body(values, mask):
    return reduction(values, mask, axis_name='b')

  pmapped = jax.pmap(body, axis_name='b')(values, mask)
  for device in range(B):
    close(jax.tree.map(lambda x, d=device: x[d], pmapped), whole)
  spec = PartitionSpec('b')
  sharded = jax.shard_map(
    body, mesh=mesh(), in_specs=spec, out_specs=PartitionSpec()
  )
  close(jax.jit(sharded)(values, mask), whole)
  means = np.mean([reduction(v, m).value for v, m in zip(values, mask)])
  assert abs(float(whole.value) - means) > 0.01


@pytest.mark.parametrize('map_name', ['pmap', 'shard_map'])
def test_gradient_of_target_logprobs_when_mapped(map_name):
  targets, weights = jnp.asarray(TARGETS), jnp.asarray(LOGP)

  def loss(hidden, head, targets, weights):
    logp, entropy = logprobs.target_logprobs(hidden, head, targets, chunk=3)
    return (weights * (logp + 0.5 * entropy)).sum()

  def body(*args):
    return jax.lax.psum(loss(*args), 'b')

  if map_name == 'pmap':
    mapped = jax.pmap(
      body, axis_name='b', in_axes=(0, None, 0, 0), out_axes=None
    )
  else:
    here, nowhere = PartitionSpec('b'), PartitionSpec()
    mapped = jax.shard_map(
      body,
      mesh=mesh(),
      in_specs=(here, nowhere, here, here),
      out_specs=nowhere,
      check_vma=False,
    )
  args = (*arrays((HIDDEN, HEAD)), targets, weights)
  close(
    jax.jit(jax.grad(mapped, argnums=(0, 1)))(*args),
    jax.jit(jax.grad(loss, argnums=(0, 1)))(*args),
  )
