"""Golden numbers of the public code: values and gradients, case by case.

Deviations are asserted twice: our value, and theirs from the formula that
gives it. All in float64 at rtol 1e-9, unless a test says float32.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from gft_jax import batch
from gft_jax.config import LossConfig, OptimizerConfig
from gft_jax.data import dataset
from gft_jax.ops import (
  advantages,
  divergences,
  logprobs,
  losses,
  masking,
  rectification,
)
from gft_jax.training import objectives, optimizer

CASES = json.loads(
  (pathlib.Path(__file__).parents[1] / 'golden' / 'vectors.json').read_text()
)['cases']

# verl divides by (sum of mask + this).
VERL_EPSILON = 1e-8

REDUCTIONS = {
  'token-mean': masking.token_mean,
  'seq-mean-token-mean': masking.sequence_mean,
  'seq-mean-token-sum': masking.token_sum,
}


def of(*families):
  cases = [c for c in CASES if c['family'] in families]
  assert {c['family'] for c in cases} == set(families)
  return pytest.mark.parametrize(
    'case', [pytest.param(c, id=c['id']) for c in cases]
  )


@pytest.fixture(autouse=True)
def x64():
  with jax.enable_x64(True):
    yield


def array(value):
  return jnp.asarray(value, jnp.float64)


def bool_array(value):
  return jnp.asarray(value, bool)


def response_advantages(per_token):
  """[B, T] constant along T -> [B]."""
  per_token = np.asarray(per_token)
  assert (per_token == per_token[:, :1]).all()
  return array(per_token[:, 0])


def reduced(mode, mask, token_loss):
  """logp -> loss, the way `gft_jax` reduces it."""
  reduce = REDUCTIONS[mode]
  return lambda logp: reduce(token_loss(masking.select(logp, mask)), mask).value


def assert_close(ours, theirs, rtol=1e-9, err_msg=''):
  assert_allclose(ours, theirs, rtol=rtol, atol=1e-15, err_msg=err_msg)


def assert_value_and_grad(function, x, loss, gradient, factor=1.0):
  """Both equal the golden ones times `factor`."""
  ours, our_gradient = jax.jit(jax.value_and_grad(function))(x)
  assert_close(ours, factor * loss)
  assert_close(our_gradient, factor * np.asarray(gradient))


def without_verl_epsilon(mode, mask):
  """Deviation: ours has no 1e-8 under a token mean.

  So ours = theirs * (N + 1e-8) / N, which shows at rtol 1e-9.
  """
  count = int(mask.sum())
  if mode != 'token-mean' or not count:
    return 1.0
  return (count + VERL_EPSILON) / count


def test_every_family_is_covered():
  import ast

  tree = ast.parse(pathlib.Path(__file__).read_text())
  covered = {
    argument.value
    for node in ast.walk(tree)
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'of'
    for argument in node.args
  }
  assert covered == {case['family'] for case in CASES}
  assert len(CASES) == 87


# The code takes the coefficient from a separate array of probabilities.
P_APART = 'gft_prob_not_exp_logprob'


@of('gft_loss')
def test_gft_loss(case):
  inputs, hyper, expected = case['inputs'], case['hyper'], case['expected']
  mask, logp = bool_array(inputs['mask']), array(inputs['log_prob'])
  p, advantage = (
    np.asarray(inputs['prob']),
    response_advantages(inputs['advantages']),
  )
  factor = without_verl_epsilon(hyper['agg'], mask)
  ours = reduced(
    hyper['agg'],
    mask,
    lambda l: losses.gft_token_loss(l, advantage, tau=hyper['tau']),
  )
  if case['id'] == P_APART:
    # Deviation: one fact, one argument. Theirs follows from p apart ...
    c = np.where(p > hyper['tau'], 1, p)
    slope = -c * np.asarray(inputs['advantages']) * np.asarray(mask)
    count = int(mask.sum()) + VERL_EPSILON
    assert_close(slope / count, expected['grad_log_prob'])
    assert_close(np.sum(slope * logp) / count, expected['loss'])
    # ... and ours is the case in which p is exp(logp).
    same = next(c for c in CASES if c['id'] == 'gft_tokenmean_tau0.5')
    assert same['inputs']['log_prob'] == inputs['log_prob']
    expected = same['expected']
    assert abs(float(ours(logp)) - case['expected']['loss']) > 0.01
  assert_value_and_grad(
    ours, logp, expected['loss'], expected['grad_log_prob'], factor
  )


def test_gft_boundary():
  """Deviation from Eq. 5, not from the code: at p = tau the code is strict.

  The case gives p apart from log p; exp(log 0.25) happens to be 0.25 here.
  """
  case = next(c for c in CASES if c['id'] == 'gft_boundary_strict')
  inputs, expected = case['inputs'], case['expected']
  p, tau = np.asarray(inputs['prob']), case['hyper']['tau']
  logp = array(inputs['log_prob'])
  assert (np.exp(logp) <= tau).tolist() == [[True, True, False]]
  ours = rectification.dynamic_coefficient(logp, tau=tau)
  assert_close(ours, expected['coef'])
  assert_close(np.where(p > tau, 1, p), expected['coef'])
  equation = np.where(p < tau, p, 1)
  assert equation.tolist() == [[1, 1, 1]]
  assert abs(np.mean(-equation * logp) - expected['loss']) > 0.1


@of('gft_microbatch', 'dft_microbatch')
def test_micro_batches(case):
  """Deviation: theirs adds micro-batch means, ours the totals and weights."""
  inputs, expected, hyper = case['inputs'], case['expected'], case['hyper']
  logp, mask = array(inputs['log_prob']), bool_array(inputs['mask'])
  if case['family'] == 'gft_microbatch':
    advantage = response_advantages(inputs['advantages'])
    token_loss = lambda l, rows: losses.gft_token_loss(  # noqa: E731
      l, advantage[rows], tau=hyper['tau']
    )
    divisor = hyper['gradient_accumulation']
  else:
    token_loss = lambda l, rows: losses.dft_token_loss(l)  # noqa: E731
    divisor = 1  # The DFT trainer adds the gradients and divides the log only.
  size = hyper['micro_batch_size']
  parts = [slice(i, i + size) for i in range(0, len(logp), size)]

  def mean(logp, rows):
    values = token_loss(masking.select(logp, mask)[rows], rows)
    return masking.token_mean(values, mask[rows])

  def theirs(logp):
    means = [mean(logp, rows) for rows in parts]
    return [m.total / (m.weight + VERL_EPSILON) for m in means]

  def ours(logp):
    return sum(mean(logp, rows) for rows in parts).value

  assert_close(theirs(logp), expected['micro_losses'])
  assert_close(
    jax.grad(lambda l: sum(theirs(l)) / divisor)(logp),
    expected['accumulated_grad_log_prob'],
  )
  whole = lambda l: mean(l, slice(None)).value  # noqa: E731
  assert_value_and_grad(ours, logp, whole(logp), jax.grad(whole)(logp))
  assert abs(float(ours(logp)) - np.mean(expected['micro_losses'])) > 0.01
  if 'contrast_full_batch_loss' in expected:
    assert_value_and_grad(
      ours,
      logp,
      expected['contrast_full_batch_loss'],
      expected['contrast_full_batch_grad_log_prob'],
      without_verl_epsilon('token-mean', mask),
    )
  if 'reported_loss' in expected:
    assert_close(np.mean(theirs(logp)), expected['reported_loss'])


@of('gft_from_logits')
def test_gft_from_logits(case):
  inputs, hyper, expected = case['inputs'], case['hyper'], case['expected']
  assert hyper['temperature'] == 1, 'GFT sees the un-tempered model'
  labels, mask = jnp.asarray(inputs['labels']), bool_array(inputs['mask'])
  advantage = response_advantages(inputs['advantages'])
  logits = array(inputs['logits'])
  head = jnp.eye(logits.shape[-1])

  def logp_of(logits):
    return logprobs.target_logprobs(logits, head, labels, chunk=4)[0]

  loss = reduced(
    hyper['agg'],
    mask,
    lambda l: losses.gft_token_loss(l, advantage, tau=hyper['tau']),
  )
  assert_close(logp_of(logits), expected['log_prob'])
  assert_close(jnp.exp(logp_of(logits)), expected['prob'])
  assert_value_and_grad(
    lambda logits: loss(logp_of(logits)),
    logits,
    expected['loss'],
    expected['grad_logits'],
    without_verl_epsilon(hyper['agg'], mask),
  )


def by_group(case, dtype):
  """Flat rewards with group keys -> [B, G], members, and the way back."""
  rewards, keys = case['inputs']['rewards'], case['inputs']['group']
  names = sorted(set(keys))
  rows = [[i for i, key in enumerate(keys) if key == n] for n in names]
  width = max(map(len, rows))
  padded = np.full((len(rows), width), np.nan)  # NaN must not leak.
  members = np.zeros((len(rows), width), bool)
  for b, row in enumerate(rows):
    padded[b, : len(row)] = [rewards[i] for i in row]
    members[b, : len(row)] = True

  def flat(values):
    out = np.zeros(len(keys))
    for b, row in enumerate(rows):
      out[row] = np.asarray(values)[b, : len(row)]
    return out

  return jnp.asarray(padded, dtype), jnp.asarray(members), flat


@of('grpo_advantage')
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_grpo_advantage(case, dtype):
  rewards, members, flat = by_group(case, dtype)
  hyper, expected = case['hyper'], case['expected'][f'advantage_{dtype}']
  if hyper['norm_by_std']:
    ours = advantages.group_normalized(rewards, members, epsilon=hyper['eps'])
  else:
    ours = advantages.mean_centred(rewards, members)
  assert ours.dtype == dtype
  if 'equal_nonbinary' in case['id']:
    # Deviation: exactly 0; theirs keeps the rounding of the mean, here
    # of the size 1e-17, times 1e6 after the division by epsilon.
    assert (flat(ours) == 0).all()
    assert_allclose(expected, 0, atol=1e-10)
    assert dtype == 'float32' or all(expected)
    return
  if 'singleton1_std' in case['id'] and dtype == 'float64':
    # Their std of one is a float32 1, also here, and takes epsilon as one.
    theirs = 1 / np.float64(np.float32(1) + np.float32(hyper['eps']))
    assert_close(expected, [theirs])
    expected = [1 / (1 + hyper['eps'])]
  assert_close(flat(ours), expected, 1e-5 if dtype == 'float32' else 1e-9)


@of('rloo_advantage', 'trl_rloo_advantage')
def test_rloo_advantage(case):
  rewards, members, flat = by_group(case, 'float64')
  ours = advantages.leave_one_out(rewards, members)
  assert_close(flat(ours), case['expected']['advantage'])


@of('luffy_advantage')
def test_luffy_advantage(case):
  rewards, members, flat = by_group(case, 'float64')
  hyper = case['hyper']
  if hyper['use_std']:
    ours = advantages.group_normalized(rewards, members, epsilon=hyper['eps'])
  else:
    ours = advantages.mean_centred(rewards, members)
  assert_close(flat(ours), case['expected']['advantage'])


@of('trl_grpo_advantage')
def test_trl_grpo_advantage(case):
  """Theirs has Bessel's correction n / (n - 1) in float32; ours is exact."""
  rewards, members, flat = by_group(case, 'float64')
  epsilon = case['hyper']['eps']
  ours = advantages.group_normalized(rewards, members, epsilon=epsilon)
  centred = flat(advantages.mean_centred(rewards, members))
  assert_close(centred, case['expected']['advantage_scale_none'])
  count = len(centred)
  for dtype, values in (
    ('float64', flat(ours)),
    ('float32', case['expected']['advantage']),
  ):
    bessel = np.asarray(count / (count - 1), dtype).astype('float64')
    std = np.sqrt(np.mean(centred**2) * bessel)
    assert_close(values, centred / (std + epsilon))


def grpo(inputs, low, high, dual_clip=None, advantage=None):
  behavior, mask = array(inputs['old_log_prob']), bool_array(inputs['mask'])
  if advantage is None:
    advantage = response_advantages(inputs['advantages'])
  return lambda l: losses.grpo_token_loss(
    l,
    masking.select(behavior, mask),
    advantage,
    clip_low=low,
    clip_high=high,
    dual_clip=dual_clip,
  )


@of('ppo_loss')
def test_ppo_loss(case):
  inputs, hyper, expected = case['inputs'], case['hyper'], case['expected']
  mask, mode = bool_array(inputs['mask']), hyper['agg']
  token_loss = grpo(
    inputs,
    hyper['cliprange_low'],
    hyper['cliprange_high'],
    hyper['clip_ratio_c'],
  )
  if mode == 'seq-mean-token-sum-norm':
    # verl's Dr. GRPO: the sum over all tokens / T, without / sequences.
    def loss(logp):
      values = token_loss(masking.select(logp, mask))
      return masking.token_sum(values, mask).total / mask.shape[-1]

  else:
    loss = reduced(mode, mask, token_loss)
  assert_value_and_grad(
    loss,
    array(inputs['log_prob']),
    expected['loss'],
    expected['grad_log_prob'],
    without_verl_epsilon(mode, mask),
  )


def loss_of_row(name, inputs, given, *, theirs=True, **settings):
  """logp [rows, T] -> loss of a row of the table, reduced as a step does.

  Each row is a group of one, and its advantage is handed over. With `theirs`
  a token mean has verl's 1e-8, else it is ours.
  """
  objective = objectives.OBJECTIVES[name]
  settings = objectives.resolve(LossConfig(**settings), objective)
  mask = bool_array(inputs['mask'])[:, None]
  behavior = array(inputs['old_log_prob'])[:, None]
  origin = jnp.where(jnp.asarray(given), batch.EXPERT, batch.SELF)[:, None]
  advantage = inputs.get('advantages', np.zeros(mask[:, 0].shape).tolist())

  def loss(logp):
    view = objectives.View(
      logp=masking.select(logp[:, None], mask),
      behavior_logp=masking.select(behavior, mask),
      entropy=jnp.zeros(mask.shape),
      advantages=response_advantages(advantage)[:, None],
      origin=origin,
      mask=mask,
      end=jnp.zeros(mask.shape, bool),
      step=jnp.int32(0),
    )
    total = 0.0
    for term in objectives.with_options(objective, view, settings):
      name = term.reduction or settings.reduction
      part = masking.REDUCTIONS[name](term.values, term.mask)
      epsilon = VERL_EPSILON if theirs and name == 'token_mean' else 0.0
      total += term.coefficient * part.total / (part.weight + epsilon)
    return total

  return loss


@of('psft_loss')
def test_psft_loss(case):
  """Their dual clip is never reached; ours is without."""
  inputs, hyper, expected = case['inputs'], case['hyper'], case['expected']
  assert hyper['clip_ratio_c'] == 10 and hyper['agg'] == 'token-mean'
  loss = loss_of_row('psft', inputs, [True] * 2, clip_high=hyper['clip_high'])
  assert_value_and_grad(
    loss, array(inputs['log_prob']), expected['loss'], expected['grad_log_prob']
  )
  published = dict(objectives.OBJECTIVES['psft'].published)
  assert published['clip_high'] == hyper['clip_high']


@of('luffy_loss')
def test_luffy_loss(case):
  inputs, hyper, expected = case['inputs'], case['hyper'], case['expected']
  given = np.asarray(inputs['prefix_mask'])[:, 0] == 1
  settings = {'entropy_bonus': 0.0}
  if not hyper['loss_remove_clip']:
    clip = hyper['cliprange']
    upper = max(hyper['clip_upper_bound'], 1 + clip)
    settings |= {'clip_low': clip, 'clip_high': upper - 1}
  assert hyper['loss_remove_token_mean']
  if hyper['off_policy_reshape'] == 'no_reshape':
    # Deviation: ours has no such switch. Their -A p is the limit of -A γ p /
    # (p + γ), so γ times the given rows' part of ours.
    large = 1e12
    scale = jnp.where(jnp.asarray(given), large, 1)[:, None]
    inputs = dict(inputs)
    advantage = np.asarray(inputs['advantages']) * np.asarray(scale)
    inputs['advantages'] = advantage.tolist()
    settings['shaping'] = large
  loss = loss_of_row('luffy', inputs, given, **settings)
  assert_value_and_grad(
    loss, array(inputs['log_prob']), expected['loss'], expected['grad_log_prob']
  )


@of('luffy_multitask')
def test_luffy_multitask(case):
  inputs, hyper, expected = case['inputs'], case['hyper'], case['expected']
  given = np.isin(np.arange(3), inputs['off_policy_rows'])
  # Their mean over given tokens has no 1e-8.
  loss = loss_of_row(
    'grpo_sft', inputs, given, theirs=False, sft_weight=hyper['sft_loss_coef']
  )
  assert_value_and_grad(
    loss, array(inputs['log_prob']), expected['loss'], expected['grad_log_prob']
  )


@of('luffy_advantage_split')
def test_luffy_advantage_split(case):
  rewards, members, flat = by_group(case, 'float64')
  own = jnp.asarray([case['inputs']['on_policy']])
  if case['hyper']['use_std']:
    ours = advantages.group_normalized(
      rewards, members, epsilon=case['hyper']['eps'], baseline_mask=own
    )
  else:
    ours = advantages.mean_centred(rewards, members, baseline_mask=own)
  assert_close(flat(ours), case['expected']['advantage'])


@of('chord_loss')
def test_chord_loss(case):
  """Their weights of micro-batches are 1 / rows here, so each mean counts once."""
  inputs, hyper, expected = case['inputs'], case['hyper'], case['expected']
  rows = hyper['train_batch_size_usual'], hyper['train_batch_size_expert']
  assert expected['weight_usual'] * rows[0] == 1
  assert expected['weight_expert'] * rows[1] == 1
  loss = loss_of_row(
    'chord_phi' if hyper['enable_phi_function'] else 'chord_mu',
    inputs,
    np.asarray(inputs['expert_mask']) == 1,
    clip_low=hyper['clip_range'],
    clip_high=hyper['clip_range'],
    dual_clip=hyper['clip_ratio_c'],
    mu_peak=hyper['mu'],
    mu_valley=hyper['mu'],
  )
  assert_value_and_grad(
    loss, array(inputs['log_prob']), expected['loss'], expected['grad_log_prob']
  )


@of('chord_sft')
def test_chord_sft(case):
  inputs, expected = case['inputs'], case['expected']
  mask = bool_array(inputs['mask'])
  assert_value_and_grad(
    reduced('token-mean', mask, losses.chord_token_loss),
    array(inputs['log_prob']),
    expected['loss'],
    expected['grad_log_prob'],
    without_verl_epsilon('token-mean', mask),
  )


@of('chord_mu_schedule')
def test_chord_mu_schedule(case):
  hyper = case['hyper']
  ours = losses.chord_mu(
    jnp.asarray(case['inputs']['steps']),
    peak=hyper['mu_peak'],
    valley=hyper['mu_valley'],
    warmup_steps=hyper['mu_warmup_steps'],
    decay_steps=hyper['mu_decay_steps'],
  )
  assert_close(ours, case['expected']['mu'])


@of('pad_responses')
def test_pad_responses(case):
  """Deviation: no token after the end trains, and what is too long is dropped.

  Theirs cuts the second answer, which loses its EOS, and counts one token of
  padding as an EOS of each answer that is shorter than the limit. That ours
  drops is tested in tests/data/pipeline_test.py.
  """
  hyper, expected = case['hyper'], case['expected']
  limit, answers = hyper['response_length'], case['inputs']['responses']
  theirs = [(a + [hyper['pad_token_id']] * limit)[:limit] for a in answers]
  assert theirs == expected['padded']
  trained = [min(len(a) + 1, limit) for a in answers]
  mask = batch.length_mask(jnp.asarray(trained), limit)
  assert mask.astype(int).tolist() == expected['mask']

  fitting = [a for a in answers if len(a) <= limit]
  tokens, length = dataset.Ragged(fitting).padded(
    np.arange(len(fitting)), limit
  )
  assert tokens.tolist() == [expected['padded'][0], expected['padded'][2]]
  ours = batch.length_mask(jnp.asarray(length), limit)
  assert ours.sum(axis=-1).tolist() == [3, 1]
  assert len(fitting) == 2


TRL_REDUCTIONS = {
  'grpo': 'seq-mean-token-mean',
  'bnpo': 'token-mean',
  'dapo': 'token-mean',  # One process: all active tokens are its own.
}


@of('trl_grpo_loss')
def test_trl_grpo_loss(case):
  inputs, hyper, expected = case['inputs'], case['hyper'], case['expected']
  token_loss = grpo(inputs, hyper['epsilon_low'], hyper['epsilon_high'])
  mode = TRL_REDUCTIONS[hyper['loss_type']]
  assert_value_and_grad(
    reduced(mode, bool_array(inputs['mask']), token_loss),
    array(inputs['log_prob']),
    expected['loss'],
    expected['grad_log_prob'],
  )


@of('trl_rloo_loss')
def test_trl_rloo_loss(case):
  """A ratio of sequences is a ratio of one token, their sum."""
  inputs, hyper, expected = case['inputs'], case['hyper'], case['expected']
  mask = bool_array(inputs['mask'])

  def whole(logp):
    return masking.select(logp, mask).sum(axis=-1, keepdims=True)

  def loss(logp):
    values = losses.grpo_token_loss(
      whole(logp),
      whole(array(inputs['old_log_prob'])),
      array(inputs['advantages_per_sequence']),
      clip_low=hyper['epsilon_low'],
      clip_high=hyper['epsilon_high'],
    )
    return values.mean()

  assert_value_and_grad(
    loss,
    array(inputs['log_prob']),
    expected['loss'],
    expected['grad_log_prob'],
  )


@of('sft_loss')
def test_sft_loss(case):
  inputs, expected = case['inputs'], case['expected']
  mask = bool_array(inputs['mask'])
  assert_value_and_grad(
    reduced('token-mean', mask, losses.sft_token_loss),
    array(inputs['log_prob']),
    expected['loss'],
    expected['grad_log_prob'],
    without_verl_epsilon('token-mean', mask),
  )


@of('asft_logits', 'dft_logits')
def test_losses_from_logits(case):
  """SFT, DFT, and both with ASFT's KL(reference || policy).

  The labels are not shifted, with -100 on the prompt: the code shifts by one.
  """
  inputs, expected = case['inputs'], case['expected']
  mode, weight = case['hyper'].get('mode', 'dft'), 0.0
  if 'kl' in mode or mode == 'asft':
    weight = case['hyper']['kl_weight']
  token_loss = (
    losses.sft_token_loss if mode.startswith('sft') else losses.dft_token_loss
  )
  labels = jnp.asarray(inputs['labels'])[:, 1:]
  mask = labels != -100
  logits = array(inputs['logits'])
  head = jnp.eye(logits.shape[-1])

  def logp_of(logits):
    targets = jnp.where(mask, labels, 0)
    return logprobs.target_logprobs(logits[:, :-1], head, targets, chunk=4)[0]

  def kl_of(logits):
    reference = array(inputs['ref_logits'])[:, :-1]
    return divergences.kl_to_reference(
      reference, head, logits[:, :-1], head, chunk=4
    )

  def loss(logits):
    values = token_loss(masking.select(logp_of(logits), mask))
    if weight:
      values += weight * masking.select(kl_of(logits), mask)
    return masking.token_mean(values, mask).value

  if 'token_log_prob' in expected:
    select = np.asarray(mask)
    for ours, theirs in (
      (logp_of(logits), expected['token_log_prob']),
      (kl_of(logits), expected['token_kl_ref_model']),
    ):
      theirs = np.asarray(theirs)
      theirs = theirs[select] if theirs.ndim == 2 else theirs
      assert_close(np.asarray(ours)[select], theirs)
  assert_value_and_grad(loss, logits, expected['loss'], expected['grad_logits'])


KL_KINDS = {'kl': 'k1', 'abs': 'abs', 'mse': 'k2', 'low_var_kl': 'k3'}


@of('kl_penalty')
def test_kl_penalty(case):
  inputs, expected = case['inputs'], case['expected']
  estimator = divergences.ESTIMATORS[KL_KINDS[case['hyper']['kind']]]
  reference = array(inputs['ref_log_prob'])
  logp = array(inputs['log_prob'])
  assert_close(estimator(logp, reference), expected['value'])
  gradient = jax.grad(lambda l: estimator(l, reference).sum())(logp)
  assert_close(gradient, expected['grad_log_prob_of_sum'])


@of('kl_eval')
def test_kl_eval(case):
  inputs = case['inputs']
  k1 = divergences.k1(
    array(inputs['log_prob_base']), array(inputs['log_prob_current'])
  )
  ours = masking.token_sum(k1, bool_array(inputs['mask'])).value
  assert_close(ours, case['expected']['kl_eval'])


@of('response_mask')
def test_response_mask(case):
  """A mask is a length; theirs is inferred from a token id."""
  ids, eos = case['inputs']['response_ids'], case['hyper']['eos_token']
  length = [row.index(eos) + 1 if eos in row else len(row) for row in ids]
  ours = batch.length_mask(jnp.asarray(length), len(ids[0]))
  assert ours.astype(int).tolist() == case['expected']['mask']


@of('optimizer')
def test_optimizer(case):
  """Deviation: torch's clip factor is 1 / (norm + 1e-6), optax's 1 / norm."""
  inputs, hyper = case['inputs'], case['hyper']
  grads = array(inputs['grads'])
  norms = jnp.linalg.norm(grads, axis=-1)
  if 'pre_clip_norms' in case['expected']:
    assert_close(norms, case['expected']['pre_clip_norms'])
  theirs = np.asarray(case['expected']['params_after_each_step'])
  limit = hyper['clip_grad_norm']
  clipped = grads * jnp.minimum(1, limit / (norms + 1e-6))[:, None]

  def run(grads, clip_norm):
    chain = optimizer.make_optimizer(
      OptimizerConfig(
        learning_rate=hyper['lr'],
        b1=hyper['betas'][0],
        b2=hyper['betas'][1],
        epsilon=hyper['eps'],
        weight_decay=hyper['weight_decay'],
        clip_norm=clip_norm,
      ),
      total_steps=len(grads),
    )
    params = array(inputs['params0'])
    state, trace = chain.init(params), []
    for gradient in grads:
      updates, state = chain.update(gradient, state, params)
      params = params + updates
      trace.append(params)
    return np.asarray(trace)

  assert_close(run(clipped, 0.0), theirs)
  moved = np.abs(theirs - np.asarray(inputs['params0']))
  assert (np.abs(run(grads, limit) - theirs) <= 2e-6 * moved + 1e-15).all()


@of('lr_schedule')
def test_lr_schedule(case):
  """Deviation: our cosine ends at a fiftieth of the peak, theirs at 0."""
  hyper, steps = case['hyper'], case['inputs']['steps']
  schedule = optimizer.make_schedule(
    OptimizerConfig(
      learning_rate=1.0, schedule='cosine', warmup_steps=hyper['warmup_steps']
    ),
    hyper['total_steps'],
  )
  ours = np.asarray([schedule(jnp.asarray(step)) for step in steps])
  theirs = np.asarray(case['expected']['factor'])
  after = np.asarray(steps) >= hyper['warmup_steps']
  assert_close(ours, np.where(after, 0.02 + 0.98 * theirs, theirs))
