"""Held-out evaluation: prompts in, numbers with intervals out.

`held_out` is what a stage reports; it reaches devices and graders through the
engine that train.py hands it, so it compiles nothing.

Accuracy is over samples and problems: avg@k is the mean score, pass@k the
unbiased estimate of Chen et al. 2021, each with a 95 % interval over
problems. Drift is exact over the vocabulary, on the policy's own samples at
temperature 1.
"""

import collections
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from gft_jax import data, groups, rewards
from gft_jax.batch import GroupBatch, Prompts, Responses
from gft_jax.config import (
  Config,
  GroupConfig,
  RewardConfig,
  SamplerConfig,
  require,
)
from gft_jax.models.transformer import response_states
from gft_jax.ops import diagnostics, divergences, masking, passk
from gft_jax.ops.logprobs import target_logprobs
from gft_jax.ops.masking import WeightedMean
from gft_jax.ops.rectification import dynamic_coefficient

# Splits are read for own answers, or for experts' alone.
OWN = GroupConfig(experts=0, teachers=0, samples=1)
EXPERT_ONLY = GroupConfig(experts=1, teachers=0, samples=0)

# What is kept of an answer, besides its reward.
KEPT = ('index', 'prompt', 'answer', 'response', 'finished')


class Benchmark(NamedTuple):
  """What is evaluated.

  Attributes:
    splits: name -> dataset (loaded for OWN), whose first rows are asked.
    demonstrations: expert answers (loaded for EXPERT_ONLY), or None.
  """

  splits: dict[str, data.Dataset]
  demonstrations: data.Dataset | None


def held_out(
  engine: Any,
  params: Any,
  base: Any | None,
  benchmark: Benchmark,
  config: Config,
  *,
  name: str,
  figures: pathlib.Path,
  generations: pathlib.Path | None = None,
) -> dict[str, float]:
  """Accuracy, likelihood of experts, and drift from the base.

  Args:
    engine: train.Engine.
    params: the policy.
    base: parameters of the base policy, or None for no drift.
    benchmark: splits and demonstrations.
    config: its `eval`, `sampler`, `reward` and `loss` are used.
    name: of this evaluation, for the journal of time-outs.
    figures: file that receives the weights of Figure 2.
    generations: folder that receives every graded answer, SPLIT.jsonl; None
      keeps none.

  Returns:
    'eval/...' -> number.
  """
  metrics = {}
  for number, (split, dataset) in enumerate(benchmark.splits.items()):
    key = engine.key('evaluate', number)
    with contextlib.ExitStack() as stack:
      keep = None
      if generations:
        generations.mkdir(parents=True, exist_ok=True)
        keep = stack.enter_context((generations / f'{split}.jsonl').open('w'))
      scores, failures = _answers(
        engine, params, dataset, config, key, f'{name}/{split}', keep
      )
    values = accuracy(scores, config.eval.ks)
    values |= {f'reward_failures/{k}': v for k, v in failures.items()}
    metrics |= {f'{split}/{k}': v for k, v in values.items()}
  if benchmark.demonstrations:
    metrics |= _demonstrations(
      engine, params, benchmark.demonstrations, config, figures
    )
  if base is not None and config.eval.kl_prompts and benchmark.splits:
    dataset = next(iter(benchmark.splits.values()))
    metrics |= _drift(engine, params, base, dataset, config)
  return {f'eval/{k}': v for k, v in metrics.items()}


def reward_of(config: Config) -> RewardConfig:
  """How evaluations grade: one part, so that 1 is right whatever the sum."""
  first = rewards.parts_of(config.reward.function)[0].name
  function = config.eval.reward or first
  return dataclasses.replace(config.reward, function=function)


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


def regrade(
  path: pathlib.Path, grader: Any, ks: tuple[int, ...]
) -> dict[str, float]:
  """`accuracy` of answers that `held_out` has kept, under any reward.

  Args:
    path: SPLIT.jsonl.
    grader: a rewards.Grader.
    ks: each at most the answers per problem.

  Raises:
    ConfigError: no such file, or a line that is not a kept answer.
  """
  require(path.is_file(), f'{path} does not exist')
  kept = []
  for number, line in enumerate(path.read_text().splitlines(), 1):
    try:
      entry = json.loads(line)
      kept.append([entry[name] for name in KEPT])
    except (ValueError, KeyError, TypeError):
      require(False, f'{path}: line {number} is no answer with {KEPT}')
  require(bool(kept), f'{path} holds no answer')
  index, prompts, answers, responses, finished = zip(*kept)
  problems = len(set(index))
  require(
    len(kept) % problems == 0 and len(kept) // problems >= max(ks, default=1),
    f'{path} has {len(kept)} answers to {problems} problems, too few for'
    f' eval.ks={ks}',
  )
  scored = grader.score(prompts, answers, responses, finished=finished)
  metrics = accuracy(scored.values.reshape(problems, -1), ks)
  return metrics | {
    f'reward_failures/{k}': v for k, v in scored.failures.items()
  }


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

  hidden, head = response_states(model, params, batch)
  _, entropy = target_logprobs(
    hidden, head, batch.responses.tokens, chunk=chunk
  )
  reference = response_states(model, base, batch)
  kl = divergences.kl_to_reference(hidden, head, *reference, chunk=chunk)
  return {
    'entropy': masking.token_mean(entropy, mask),
    'kl_to_base': masking.token_mean(kl, mask),
    'kl_to_base_per_response': masking.token_sum(kl, mask),
  }


def demonstration_tokens(
  model: Any, params: Any, batch: GroupBatch, *, chunk: int
) -> dict[str, jax.Array]:
  """What the policy makes of the tokens of given answers. Pure.

  Args:
    model: entrances `prefill`, `respond` and `head`.
    params: the policy.
    batch: given answers; rewards are not used.
    chunk: tokens whose logits exist at one time.

  Returns:
    Arrays [B, G, T]: `logp`; `gradient`, the norm of `token_gradients`; and
    `likeliest`, the token that the policy would have written.
  """
  hidden, head = response_states(model, params, batch)
  tokens = batch.responses.tokens
  logp, _ = target_logprobs(hidden, head, tokens, chunk=chunk)
  gradient, likeliest = diagnostics.token_gradients(
    hidden, head, tokens, chunk=chunk
  )
  return {'logp': logp, 'gradient': gradient, 'likeliest': likeliest}


def pad_rows(tree: Any, rows: int) -> Any:
  """Repeats the last row until the first axis has `rows` rows."""

  def one(x):
    missing = rows - x.shape[0]
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])

  return jax.tree.map(one, tree)


def prompts_of(examples: data.Examples) -> Prompts:
  return Prompts(
    tokens=examples.tokens, length=examples.length, index=examples.index
  )


def given_of(examples: data.Examples) -> Responses:
  """The dataset's answers; no policy of ours has sampled them."""
  return Responses(
    tokens=examples.given_tokens,
    length=examples.given_length,
    behavior_logp=np.zeros(examples.given_tokens.shape, np.float32),
    trained=examples.given_trained,
  )


def _answers(
  engine: Any,
  params: Any,
  dataset: data.Dataset,
  config: Config,
  key: jax.Array,
  name: str,
  keep: TextIO | None,
) -> tuple[np.ndarray, dict[str, int]]:
  """Scores [problems, samples] of sampled answers, and failures by cause."""
  settings = config.eval
  sampling = dataclasses.replace(
    config.sampler, temperature=settings.temperature
  )
  scores, failures = [], collections.Counter()
  asked = batches(dataset, settings.prompts, settings.batch_size)
  for number, examples in enumerate(asked):
    responses = engine.sample(
      params,
      pad_rows(prompts_of(examples), settings.batch_size),
      key,
      sampling,
      settings.samples,
      settings.max_response,
    )
    responses = _rows(responses, len(examples.index))
    texts, finished = engine.decode(responses, sampling)
    scored = engine.score(
      reward_of(config),
      f'{name}/{number}',
      examples,
      texts,
      responses.length > 0,
      finished,
    )
    if keep:
      for b, g in np.ndindex(finished.shape):
        entry = (
          int(examples.index[b]),
          examples.prompts[b],
          examples.answers[b],
          texts[b][g],
          bool(finished[b, g]),
        )
        line = dict(zip(KEPT, entry)) | {'reward': float(scored.rewards[b, g])}
        keep.write(json.dumps(line) + '\n')
    scores.append(scored.rewards)
    failures.update(scored.failures)
  return np.concatenate(scores), dict(failures)


def _demonstrations(
  engine: Any,
  params: Any,
  dataset: data.Dataset,
  config: Config,
  figures: pathlib.Path,
) -> dict[str, float]:
  """Likelihood of held-out expert answers.

  C/p, the multiplier of grad p, before (C = 1) and after rectification goes
  to `figures` for the report.
  """
  settings = config.eval
  parts = []
  for examples in batches(dataset, settings.prompts, settings.batch_size):
    batch = unscored(
      prompts_of(examples), given_of(examples), settings.batch_size
    )
    logp = engine.token_logprobs(params, batch, chunk=config.loss.chunk)
    parts.append(logp[np.asarray(batch.token_mask)])
  logp = np.concatenate(parts)
  coefficient = np.asarray(dynamic_coefficient(logp, tau=config.loss.tau))
  figures.parent.mkdir(parents=True, exist_ok=True)
  np.savez(figures, before=np.exp(-logp), after=coefficient * np.exp(-logp))
  return {
    'expert_logp': float(logp.mean()),
    'expert_rectified_fraction': float(np.mean(coefficient < 1)),
  }


def _drift(
  engine: Any, params: Any, base: Any, dataset: data.Dataset, config: Config
) -> dict[str, float]:
  """`drift` on one sample per prompt."""
  settings = config.eval
  key = engine.key('drift', 0)
  totals = []
  for examples in batches(dataset, settings.kl_prompts, settings.batch_size):
    prompts = prompts_of(examples)
    responses = engine.sample(
      params,
      pad_rows(prompts, settings.batch_size),
      key,
      SamplerConfig(temperature=1.0, stop_strings=config.sampler.stop_strings),
      1,
      settings.max_response,
    )
    batch = unscored(
      prompts, _rows(responses, len(examples.index)), settings.batch_size
    )
    totals.append(engine.drift(params, base, batch, chunk=config.loss.chunk))
  return {
    name: float(sum(part[name] for part in totals).value) for name in totals[0]
  }


def batches(
  dataset: data.Dataset, count: int, size: int
) -> Iterator[data.Examples]:
  """The first `count` rows in order; the last batch may be smaller."""
  count = min(count, len(dataset))
  for start in range(0, count, size):
    yield dataset.examples(np.arange(start, min(start + size, count)))


def _rows(tree: Any, count: int) -> Any:
  return jax.tree.map(lambda x: x[:count], tree)


def unscored(prompts: Prompts, given: Responses, rows: int) -> GroupBatch:
  """A batch without rewards, padded to `rows` rows with empty slots."""
  real = len(given.length)
  prompts, given = pad_rows((prompts, given), rows)
  given.length[real:] = 0
  zeros = np.zeros(given.length.shape, np.float32)
  return groups.build(prompts, given, zeros.astype(np.int32), zeros)
