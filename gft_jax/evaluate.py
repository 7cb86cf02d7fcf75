"""Held-out evaluation: prompts in, numbers with intervals out.

`held_out` is what a stage reports, `benchmark` asks every question of a public
one, and goes on where it was interrupted. Both reach devices and graders
through the engine that train.py hands them, so they compile nothing. Drift is
exact over the vocabulary, on the policy's own samples at temperature 1.
"""

import collections
import dataclasses
import fcntl
import itertools
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from gft_jax import data, groups, parallel, rewards
from gft_jax.batch import GroupBatch, Prompts, Responses
from gft_jax.config import (
  Config,
  EvalConfig,
  GroupConfig,
  RewardConfig,
  SamplerConfig,
  require,
)
from gft_jax.generations import (
  Answers,
  accuracy,
  lines_of,
  read_answers,
  shortened,
  votes_of,
  write_whole,
)
from gft_jax.models.transformer import response_states
from gft_jax.ops import diagnostics, divergences, masking
from gft_jax.ops.logprobs import target_logprobs
from gft_jax.ops.masking import WeightedMean
from gft_jax.ops.rectification import dynamic_coefficient

# Splits are read for own answers, or for experts' alone.
OWN = GroupConfig(experts=0, teachers=0, samples=1)
EXPERT_ONLY = GroupConfig(experts=1, teachers=0, samples=0)

# The narrowest prompts, in tokens: each width is another program to compile.
NARROWEST = 64


class Questions(NamedTuple):
  """A public benchmark.

  Attributes:
    name: its name.
    prompts: B texts.
    answers: B reference answers.
    ids: B sequences of token ids, the prompts in their template.
    asked: [A] int, positions of the questions that can be asked, the longest
      first: those of a batch then have about one length, and a batch that does
      not fit the memory is the first.
  """

  name: str
  prompts: Sequence[str]
  answers: Sequence[str]
  ids: Sequence[Sequence[int]]
  asked: np.ndarray


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
  before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
  """Accuracy, likelihood of experts, and drift from the base.

  Each process samples and grades its share. The numbers are of all of them,
  and process 0 writes the files.

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
    before_batch: what it raises ends the evaluation.

  Returns:
    'eval/...' -> number.
  """
  metrics = {}
  for number, (split, dataset) in enumerate(benchmark.splits.items()):
    key = engine.key('evaluate', number)
    keep = generations / f'{split}.jsonl' if generations else None
    scores, failures = _answers(
      engine,
      params,
      dataset,
      config,
      key,
      f'{name}/{split}',
      keep,
      before_batch,
    )
    values = accuracy(scores, config.eval.ks)
    values |= {f'reward_failures/{k}': v for k, v in failures.items()}
    metrics |= {f'{split}/{k}': v for k, v in values.items()}
  if benchmark.demonstrations:
    metrics |= _demonstrations(
      engine, params, benchmark.demonstrations, config, figures, before_batch
    )
  if base is not None and config.eval.kl_prompts and benchmark.splits:
    dataset = next(iter(benchmark.splits.values()))
    metrics |= _drift(engine, params, base, dataset, config, before_batch)
  return {f'eval/{k}': v for k, v in metrics.items()}


def names(settings: EvalConfig) -> list[str]:
  """What `held_out` calls the accuracies, without their intervals."""
  kinds = [f'avg@{settings.samples}', *[f'pass@{k}' for k in settings.ks]]
  return [f'eval/{split}/{kind}' for split in settings.splits for kind in kinds]


def reward_of(config: Config) -> RewardConfig:
  """How evaluations grade: one part, so that 1 is right whatever the sum."""
  first = rewards.parts_of(config.reward.function)[0].name
  function = config.eval.reward or first
  return dataclasses.replace(config.reward, function=function)


def questions_of(
  name: str,
  rows: Sequence[Mapping[str, str]],
  ids: Sequence[Sequence[int]],
  most: int,
  max_dropped: float,
) -> Questions:
  """The rows of a benchmark as questions.

  A question that has more than `most` tokens, or text that the tokenizer does
  not know, is not asked, and a warning names it. It counts as answered with '',
  so that no denominator shrinks.

  Args:
    name: of the benchmark.
    rows: each with `prompt` and `answer`, of data.benchmarks.
    ids: the prompts in their template; empty where a text is not known.
    most: tokens of a question.
    max_dropped: largest share of questions that are not asked.

  Raises:
    ConfigError: more than that cannot be asked.
  """
  length = np.array([len(tokens) for tokens in ids])
  fits = (length > 0) & (length <= most)
  if not fits.all():
    out = [str(i) for i in np.flatnonzero(~fits)]
    sentence = (
      f'{name}: {len(out)} of {len(rows)} questions cannot be asked, for they'
      f' have more than {most} tokens, or text that the tokenizer does not know:'
      f' problems {shortened(out)}'
    )
    require(
      len(out) <= max_dropped * len(rows),
      f'{sentence}; that is a share above data.max_dropped={max_dropped}; see'
      ' data.max_prompt and data.instruction',
    )
    logging.warning('%s; they count as wrong', sentence)
  order = np.argsort(-length, kind='stable')
  return Questions(
    name=name,
    prompts=[row['prompt'] for row in rows],
    answers=[row['answer'] for row in rows],
    ids=ids,
    asked=order[fits[order]],
  )


def benchmark(
  engine: Any,
  params: Any,
  questions: Questions,
  config: Config,
  folder: pathlib.Path,
) -> dict[str, float]:
  """Asks every question, or those that are left, and grades the answers.

  `folder`/NAME.partial grows by whole batches, so an interrupted evaluation goes
  on after the last one. What is asked together depends on the settings alone
  and the random bits on (seed, problem, member): the answers are those of an
  uninterrupted evaluation, bit for bit. When there are all of them, they are
  graded and become NAME.jsonl in the order of the problems. Where that file
  exists nothing is asked; `claim` says whether the settings are still the same.

  Args:
    engine: train.Engine.
    params: the policy.
    questions: the benchmark.
    config: its `data.max_prompt`, `eval`, `sampler`, `reward` and `log` are used.
    folder: for the answers.

  Returns:
    'problems', 'not_asked', what `accuracy` gives, and 'reward_failures/CAUSE'.

  Raises:
    ConfigError: NAME.jsonl does not hold answers to all problems.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'{questions.name}.jsonl'
  partial = path.with_suffix('.partial')
  if path.exists():
    kept = read_answers(path)
    require(
      len(kept.index) == len(questions.ids),
      f'{path} has answers to {len(kept.index)} problems of'
      f' {len(questions.ids)}; it was changed: remove it',
    )
  else:
    _ask(engine, params, questions, config, partial)
    kept = _in_order(read_answers(partial, graded=False), questions)
  require(
    kept.finished.shape[1] == config.eval.samples,
    f'{path} has {kept.finished.shape[1]} answers to a problem, not'
    f' {config.eval.samples}; it was changed: remove it',
  )
  reward = reward_of(config)
  scored = engine.score(
    reward,
    questions.name,
    kept,
    kept.responses,
    np.ones_like(kept.finished),
    kept.finished,
  )
  kept = kept._replace(rewards=scored.rewards)
  write_whole(path, ''.join(lines_of(kept)))
  partial.unlink(missing_ok=True)
  metrics = {
    'problems': len(questions.ids),
    'not_asked': len(questions.ids) - len(questions.asked),
  }
  metrics |= accuracy(
    kept.rewards, config.eval.ks, votes_of(kept, reward.function)
  )
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

  def compare(hidden, head, other, other_head, tokens):
    _, entropy = target_logprobs(hidden, head, tokens, chunk=chunk)
    kl = divergences.kl_to_reference(
      hidden, head, other, other_head, chunk=chunk
    )
    return entropy, kl

  entropy, kl = parallel.over_prompts(compare, whole=(1, 3))(
    *response_states(model, params, batch),
    *response_states(model, base, batch),
    batch.responses.tokens,
  )
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

  def read(hidden, head, tokens):
    logp, _ = target_logprobs(hidden, head, tokens, chunk=chunk)
    gradient, likeliest = diagnostics.token_gradients(
      hidden, head, tokens, chunk=chunk
    )
    return {'logp': logp, 'gradient': gradient, 'likeliest': likeliest}

  return parallel.over_prompts(read, whole=(1,))(
    *response_states(model, params, batch), batch.responses.tokens
  )


def group_logprobs(
  engine: Any, params: Any, batch: GroupBatch, config: Config, width: int
) -> np.ndarray:
  """[B, G, T] log-probabilities of groups that every process holds.

  Each answer stands in a row of its own, and is padded to `width` tokens: with
  that of the demonstrations, their program serves.
  """
  shape, size = batch.responses.tokens.shape, config.eval.batch_size
  count, missing = batch.member_mask.size, max(width - shape[-1], 0)

  def one(x):
    x = x.reshape(count, 1, *x.shape[2:])
    return np.pad(x, ((0, 0), (0, 0), (0, missing))) if x.ndim == 3 else x

  given = jax.tree.map(one, batch.responses)
  prompts = jax.tree.map(
    lambda x: np.repeat(x, shape[1], axis=0), batch.prompts
  )
  parts = []
  for start in range(0, count, size):
    rows = np.arange(start, start + size)[parallel.own_rows(size)]
    rows = np.minimum(rows, count - 1)
    own = jax.tree.map(lambda x, rows=rows: x[rows], (prompts, given))
    logp = engine.token_logprobs(
      params, unscored(*own, len(rows)), chunk=config.loss.chunk
    )
    parts.append(parallel.gather(logp))
  logp = np.concatenate(parts)[:count, 0, : shape[-1]]
  return logp.reshape(shape)


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
  keep: pathlib.Path | None,
  before_batch: Callable[[], None],
) -> tuple[np.ndarray, dict[str, int]]:
  """Scores [problems, samples] of sampled answers, and failures by cause.

  The answers go to the file `keep`.
  """
  settings = config.eval
  sampling = dataclasses.replace(
    config.sampler, temperature=settings.temperature
  )
  scores, failures, lines = [], collections.Counter(), []
  asked = _shares(dataset, settings.prompts, settings.batch_size, before_batch)
  for number, (examples, real) in enumerate(asked):
    responses = engine.sample(
      params,
      prompts_of(examples),
      key,
      sampling,
      settings.samples,
      settings.max_response,
    )
    texts, finished = engine.decode(responses, sampling)
    scored = engine.score(
      reward_of(config),
      f'{name}/{number}',
      examples,
      texts,
      (responses.length > 0) & real[:, None],
      finished,
    )
    if keep:
      problems = examples.index, examples.prompts, examples.answers
      answers = Answers(*problems, texts, finished, scored.rewards)
      own = list(lines_of(answers))[: real.sum() * settings.samples]
      lines += itertools.chain(*parallel.exchange(own))
    graded, counted = parallel.gather((scored.rewards, real))
    scores.append(graded[counted])
    failures.update(scored.failures)
  if keep and jax.process_index() == 0:
    keep.parent.mkdir(parents=True, exist_ok=True)
    write_whole(keep, ''.join(lines))
  return np.concatenate(scores), dict(failures)


def _ask(
  engine: Any,
  params: Any,
  questions: Questions,
  config: Config,
  path: pathlib.Path,
) -> None:
  """Writes the answers to `path` in the order of the asking.

  Whole batches that are there already are not asked again.
  """
  settings = config.eval
  sampling = dataclasses.replace(
    config.sampler, temperature=settings.temperature
  )
  room = engine.model.architecture.max_positions
  key = engine.key('evaluate', 0)
  asked, size = questions.asked, settings.batch_size
  parts = [asked[i : i + size] for i in range(0, len(asked), size)]
  done = _keep_whole(path, [len(part) * settings.samples for part in parts])
  bar = tqdm.tqdm(
    total=len(asked),
    initial=sum(map(len, parts[:done])),
    desc=questions.name,
    unit='question',
    file=sys.stderr,
    disable=not (config.log.progress and sys.stderr.isatty()),
  )
  with path.open('a') as file, bar:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      require(False, f'{path} is in use by another evaluation')
    for part in parts[done:]:
      ids = [questions.ids[i] for i in part]
      width = width_of(len(ids[0]), config.data.max_prompt)
      length = np.array([len(row) for row in ids], np.int32)
      prompts = Prompts(
        tokens=np.array([[*x, *[0] * (width - len(x))] for x in ids], np.int32),
        length=length,
        index=part.astype(np.int32),
        limit=np.minimum(settings.max_response, room - length),
      )
      prompts = pad_rows(prompts, size)
      prompts.limit[len(part) :] = 1  # Rows that nobody has asked for.
      responses = engine.sample(
        params,
        prompts,
        key,
        sampling,
        settings.samples,
        min(settings.max_response, room - 1),
      )
      texts, finished = engine.decode(_rows(responses, len(part)), sampling)
      given = [questions.prompts[i] for i in part]
      expected = [questions.answers[i] for i in part]
      answers = Answers(part, given, expected, texts, finished, None)
      file.write(''.join(lines_of(answers)))
      file.flush()
      bar.update(len(part))


def _keep_whole(path: pathlib.Path, sizes: Sequence[int]) -> int:
  """Cuts a file back to whole batches of `sizes` lines; returns how many."""
  if not path.exists():
    return 0
  lines = path.read_bytes().splitlines(keepends=True)
  if lines and not lines[-1].endswith(b'\n'):
    lines.pop()
  ends = np.cumsum(sizes)
  done = int(np.searchsorted(ends, len(lines), side='right'))
  with path.open('r+b') as file:
    file.truncate(sum(map(len, lines[: ends[done - 1] if done else 0])))
  return done


def width_of(longest: int, most: int = sys.maxsize) -> int:
  """The least of NARROWEST, twice that, ..., and `most` that holds a row."""
  width = NARROWEST
  while width < longest:
    width *= 2
  return min(width, most)


def _in_order(kept: Answers, questions: Questions) -> Answers:
  """All problems by their number; those that were not asked got ''."""
  samples = kept.finished.shape[1]
  row = {int(i): b for b, i in enumerate(kept.index)}
  silence = [''] * samples
  finished = np.zeros((len(questions.ids), samples), bool)
  finished[kept.index] = kept.finished
  return Answers(
    index=np.arange(len(questions.ids)),
    prompts=questions.prompts,
    answers=questions.answers,
    responses=[
      kept.responses[row[i]] if i in row else silence
      for i in range(len(questions.ids))
    ],
    finished=finished,
    rewards=None,
  )


def _demonstrations(
  engine: Any,
  params: Any,
  dataset: data.Dataset,
  config: Config,
  figures: pathlib.Path,
  before_batch: Callable[[], None],
) -> dict[str, float]:
  """Likelihood of held-out expert answers.

  C/p, the multiplier of grad p, before (C = 1) and after rectification goes
  to `figures` for the report.
  """
  settings = config.eval
  parts = []
  asked = _shares(dataset, settings.prompts, settings.batch_size, before_batch)
  for examples, real in asked:
    given = _only(given_of(examples), real)
    batch = unscored(prompts_of(examples), given, len(real))
    logp = engine.token_logprobs(params, batch, chunk=config.loss.chunk)
    logp, mask = parallel.gather((logp, np.asarray(batch.token_mask)))
    parts.append(logp[mask])
  logp = np.concatenate(parts)
  coefficient = np.asarray(dynamic_coefficient(logp, tau=config.loss.tau))
  if jax.process_index() == 0:
    figures.parent.mkdir(parents=True, exist_ok=True)
    np.savez(figures, before=np.exp(-logp), after=coefficient * np.exp(-logp))
  return {
    'expert_logp': float(logp.mean()),
    'expert_rectified_fraction': float(np.mean(coefficient < 1)),
  }


def _drift(
  engine: Any,
  params: Any,
  base: Any,
  dataset: data.Dataset,
  config: Config,
  before_batch: Callable[[], None],
) -> dict[str, float]:
  """`drift` on one sample per prompt."""
  settings = config.eval
  key = engine.key('drift', 0)
  totals = []
  asked = _shares(
    dataset, settings.kl_prompts, settings.batch_size, before_batch
  )
  for examples, real in asked:
    prompts = prompts_of(examples)
    responses = engine.sample(
      params,
      prompts,
      key,
      SamplerConfig(temperature=1.0, stop_strings=config.sampler.stop_strings),
      1,
      settings.max_response,
    )
    batch = unscored(prompts, _only(responses, real), len(real))
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


def _shares(
  dataset: data.Dataset, count: int, size: int, before_batch: Callable[[], None]
) -> Iterator[tuple[data.Examples, np.ndarray]]:
  """This process's part of each of `batches`, and which of its rows are real.

  The last batch is filled with its last row: all have one shape.
  """
  count = min(count, len(dataset))
  for start in range(0, count, size):
    before_batch()
    rows = np.arange(start, start + size)[parallel.own_rows(size)]
    yield dataset.examples(np.minimum(rows, count - 1)), rows < count


def _only(responses: Responses, real: np.ndarray) -> Responses:
  """Rows that are not real become empty slots."""
  length = np.where(real[:, None], responses.length, 0)
  return responses.replace(length=length)


def _rows(tree: Any, count: int) -> Any:
  return jax.tree.map(lambda x: x[:count], tree)


def unscored(prompts: Prompts, given: Responses, rows: int) -> GroupBatch:
  """A batch without rewards, padded to `rows` rows with empty slots."""
  real = len(given.length)
  prompts, given = pad_rows((prompts, given), rows)
  given.length[real:] = 0
  zeros = np.zeros(given.length.shape, np.float32)
  return groups.build(prompts, given, zeros.astype(np.int32), zeros)
