"""Held-out evaluation: prompts in, numbers with intervals out.

Accuracy is over samples and problems: avg@k is the mean score, pass@k the
unbiased estimate of Chen et al. 2021, each with a 95 % interval over
problems. Drift is exact over the vocabulary, on the policy's own samples at
temperature 1.
"""

from typing import Any

import jax
import numpy as np

from gft_jax.batch import GroupBatch
from gft_jax.ops import divergences, masking, passk
from gft_jax.ops.logprobs import target_logprobs
from gft_jax.ops.masking import WeightedMean


def accuracy(scores: np.ndarray, ks: tuple[int, ...]) -> dict[str, float]:
  """avg@n and pass@k with intervals.

  Args:
    scores: [problems, n] rewards; a score of at least 1 counts as a pass.
    ks: each at most n.

  Returns:
    'avg@n' and 'pass@k', each also with '_low' and '_high'.
  """
  n = scores.shape[1]
  correct = np.sum(scores >= 1, axis=1).astype(np.int32)
  values = {f'avg@{n}': scores.mean(axis=1)}
  for k in ks:
    samples = np.full_like(correct, n)
    values[f'pass@{k}'] = np.asarray(passk.pass_at_k(correct, samples, k))
  metrics = {}
  for name, value in values.items():
    mean, low, high = (float(x) for x in passk.interval(value))
    metrics |= {name: mean, f'{name}_low': low, f'{name}_high': high}
  return metrics


def drift(
  model: Any, params: Any, base: Any, batch: GroupBatch, *, chunk: int
) -> dict[str, WeightedMean]:
  """How far the policy moved from `base`, on its own samples. Pure.

  Args:
    model: entrances `prefill`, `respond` and `head`.
    params: the policy that sampled `batch` at temperature 1.
    base: parameters of the policy that the first stage started from.
    batch: own samples; rewards are not used.
    chunk: tokens whose logits exist at one time.

  Returns:
    entropy: mean entropy of the policy per token, nats.
    kl_to_base: KL(policy || base) per token, exact over the vocabulary, nats.
    kl_to_base_per_response: the same summed over each response.
  """
  mask = batch.token_mask

  def states(weights):
    variables = {'params': weights}
    prefix = model.apply(
      variables, batch.prompts.tokens, batch.prompts.length, method='prefill'
    )
    hidden = model.apply(
      variables, prefix, batch.responses.tokens, method='respond'
    )
    return hidden, model.apply(variables, method='head')

  hidden, head = states(params)
  _, entropy = target_logprobs(
    hidden, head, batch.responses.tokens, chunk=chunk
  )
  kl = divergences.kl_to_reference(hidden, head, *states(base), chunk=chunk)
  return {
    'entropy': masking.token_mean(entropy, mask),
    'kl_to_base': masking.token_mean(kl, mask),
    'kl_to_base_per_response': masking.token_sum(kl, mask),
  }


def pad_rows(tree: Any, rows: int) -> Any:
  """Repeats the last row until the first axis has `rows` rows."""

  def one(x):
    missing = rows - x.shape[0]
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])

  return jax.tree.map(one, tree)
