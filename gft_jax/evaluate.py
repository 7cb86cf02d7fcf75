"""Held-out evaluation: prompts in, numbers with intervals out.

`held_out` is what a stage reports, `benchmark` asks every question of a public
one, and goes on where it was interrupted. Both reach devices and graders
through the engine that train.py hands them, so they compile nothing. What was
answered is kept: `regrade` and `paired` need no model.

Accuracy is over samples and problems: avg@k is the mean score, pass@k the
unbiased estimate of Chen et al. 2021, maj@k the vote, each with a 95 % interval
over problems. Drift is exact over the vocabulary, on the policy's own samples
at temperature 1.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
import tqdm

from gft_jax import data, groups, rewards
from gft_jax.answers import extract
from gft_jax.batch import GroupBatch, Prompts, Responses
from gft_jax.config import (
  Config,
  GroupConfig,
  LogConfig,
  RewardConfig,
  SamplerConfig,
  differences,
  from_dict,
  require,
  to_dict,
)
from gft_jax.models.transformer import response_states
from gft_jax.ops import diagnostics, divergences, masking, passk
from gft_jax.ops.logprobs import target_logprobs
from gft_jax.ops.masking import WeightedMean
from gft_jax.ops.rectification import dynamic_coefficient

# Splits are read for own answers, or for experts' alone.
OWN = GroupConfig(experts=0, teachers=0, samples=1)
EXPERT_ONLY = GroupConfig(experts=1, teachers=0, samples=0)

# What is kept of an answer.
KEPT = ('index', 'prompt', 'answer', 'response', 'finished', 'reward')

# The narrowest prompts, in tokens: each width is another program to compile.
NARROWEST = 64


class Answers(NamedTuple):
  """Kept answers, G to each of B problems.

  Attributes:
    index: [B] int, numbers of the problems.
    prompts: B texts.
    answers: B reference answers.
    responses: [B][G] texts of the policy.
    finished: [B, G] bool, it stopped by itself.
    rewards: [B, G] float32; None before they are graded.
  """

  index: np.ndarray
  prompts: Sequence[str]
  answers: Sequence[str]
  responses: Sequence[Sequence[str]]
  finished: np.ndarray
  rewards: np.ndarray | None


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
      f' problems {_some(out)}'
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
  _replace(path, ''.join(_lines(kept)))
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


def claim(
  out: pathlib.Path, config: Config, facts: dict[str, int | str]
) -> None:
  """Keeps what decides about answers in `out`/settings.json.

  Args:
    out: folder of an evaluation.
    config: its settings; `log` decides nothing.
    facts: name -> what else decides, such as a digest of the questions of each
      benchmark. Later evaluations may add names.

  Raises:
    ConfigError: `out` was begun under others; the line names them.
  """
  path = out / 'settings.json'
  config = dataclasses.replace(config, log=LogConfig())
  if path.exists():
    try:
      begun = json.loads(path.read_text())
      known, begun = begun['facts'], from_dict(Config, begun['config'])
    except (ValueError, KeyError, TypeError):
      require(False, f'{path} is not of an evaluation; use a new --out')
    changed = differences(begun, config)
    changed += [
      f'{name}: {known[name]!r} -> {value!r}'
      for name, value in facts.items()
      if known.get(name, value) != value
    ]
    require(
      not changed,
      f'{out} was begun under other settings; changed: {"; ".join(changed)};'
      ' use a new --out',
    )
    facts = known | facts
  out.mkdir(parents=True, exist_ok=True)
  _replace(
    path, json.dumps({'config': to_dict(config), 'facts': facts}, indent=1)
  )


def fingerprint(params: Any) -> str:
  """Tells policies apart: a digest of one row of each parameter."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(np.asarray(leaf[(0,) * (leaf.ndim - 1)]).tobytes())
  return digest.hexdigest()[:16]


def accuracy(
  scores: np.ndarray, ks: Sequence[int], votes: np.ndarray | None = None
) -> dict[str, float]:
  """avg@n, pass@k and maj@k with intervals.

  Args:
    scores: [problems, n] rewards; a score of at least 1 counts as a pass.
    ks: each at most n.
    votes: [problems, n] of `votes_of`; None leaves maj@k out.

  Returns:
    'avg@n', 'pass@k' and 'maj@k', each also with '_low' and '_high'.
  """
  n = scores.shape[1]
  correct = np.sum(scores >= 1, axis=1).astype(np.int32)
  values = {f'avg@{n}': scores.mean(axis=1)}
  for k in ks:
    samples = np.full_like(correct, n)
    values[f'pass@{k}'] = np.asarray(passk.pass_at_k(correct, samples, k))
  for k in ks if votes is not None else ():
    values[f'maj@{k}'] = np.asarray(passk.majority_at_k(votes, scores >= 1, k))
  metrics = {}
  for name, value in values.items():
    mean, low, high = (float(x) for x in passk.interval(value))
    metrics |= {name: mean, f'{name}_low': low, f'{name}_high': high}
  return metrics


def votes_of(kept: Answers, function: str) -> np.ndarray:
  """[B, G] int32: which answers to a problem say the same; -1 says nothing.

  Two say the same where `answers.extract` gives the same text, so 1/2 and 0.5
  are two votes, though either may be right.

  Args:
    kept: answers of the policy.
    function: the `reward.function` by whose rule they are read.
  """

  def numbered(responses: Sequence[str]) -> list[int]:
    seen: dict[str | None, int] = {None: -1}
    texts = (extract(function, response) for response in responses)
    return [seen.setdefault(text, len(seen)) for text in texts]

  return np.array([numbered(row) for row in kept.responses], np.int32)


def sensible_ks(samples: int) -> tuple[int, ...]:
  """1, 2, 4, ... and `samples` itself."""
  powers = (2**i for i in range(samples.bit_length()))
  return tuple(dict.fromkeys((*powers, samples)))


def regrade(
  path: pathlib.Path, reward: RewardConfig, ks: Sequence[int] = ()
) -> dict[str, float]:
  """`accuracy` of kept answers under any reward, without the model.

  Args:
    path: NAME.jsonl.
    reward: how to grade.
    ks: each at most the answers per problem; empty: `sensible_ks` of those.

  Raises:
    ConfigError: no such file, a line that is not a kept answer, or too few
      answers.
  """
  kept = read_answers(path)
  problems, samples = kept.finished.shape
  ks = ks or sensible_ks(samples)
  require(
    max(ks) <= samples,
    f'{path} has {samples} answers to each of {problems} problems, too few for'
    f' eval.ks={tuple(ks)}',
  )
  with rewards.Grader(reward) as grader:
    scored = groups.score(
      grader,
      kept.prompts,
      kept.answers,
      kept.responses,
      np.ones_like(kept.finished),
      kept.finished,
    )
  metrics = {'problems': problems}
  metrics |= accuracy(scored.rewards, ks, votes_of(kept, reward.function))
  return metrics | {
    f'reward_failures/{k}': v for k, v in scored.failures.items()
  }


def paired(before: pathlib.Path, after: pathlib.Path) -> dict[str, float]:
  """What a policy has forgotten, and learned, on the same problems.

  Args:
    before: kept answers of the policy that training began with.
    after: kept answers of what it became; they may be more or fewer per problem.

  Returns:
    problems: B.
    before, after: mean rewards.
    difference: mean over problems of (mean reward after - before), with
      'difference_low' and 'difference_high', the 95 % interval over problems of
      the paired difference.
    gained, lost: problems whose mean reward rose, and fell.

  Raises:
    ConfigError: no such file, or the problems are not the same.
  """
  old, new = read_answers(before), read_answers(after)
  if list(old.index) == list(new.index):
    pairs = zip(old.index, old.prompts, new.prompts)
    other = [str(i) for i, asked, again in pairs if asked != again]
  else:
    other = [str(i) for i in sorted({*old.index} ^ {*new.index})]
  require(
    not other,
    f'{before} and {after} do not answer the same problems; they differ in'
    f' {_some(other)}',
  )
  means = [kept.rewards.mean(axis=1, dtype=np.float64) for kept in (old, new)]
  difference = means[1] - means[0]
  mean, low, high = (
    float(x) for x in passk.interval(difference, bounds=(-1.0, 1.0))
  )
  return {
    'problems': len(difference),
    'before': float(means[0].mean()),
    'after': float(means[1].mean()),
    'difference': mean,
    'difference_low': low,
    'difference_high': high,
    'gained': int((difference > 0).sum()),
    'lost': int((difference < 0).sum()),
  }


def read_answers(path: pathlib.Path, *, graded: bool = True) -> Answers:
  """Kept answers, the problems in the order of their numbers.

  Args:
    path: NAME.jsonl.
    graded: whether they must have rewards.

  Raises:
    ConfigError: no such file, or no kept answers in it.
  """
  require(path.is_file(), f'{path} does not exist')
  problems: dict[int, list[dict[str, Any]]] = {}
  with path.open() as lines:
    for number, line in enumerate(lines, 1):
      try:
        entry = json.loads(line)
        entry = {name: entry[name] for name in KEPT}
        complete = not graded or entry['reward'] + 0.0 == entry['reward']
        problems.setdefault(int(entry['index']), []).append(entry)
      except (ValueError, KeyError, TypeError):
        complete = False
      require(complete, f'{path}: line {number} is no answer with {KEPT}')
  require(bool(problems), f'{path} holds no answer')
  problems = dict(sorted(problems.items()))
  counts = {len(entries) for entries in problems.values()}
  require(
    len(counts) == 1,
    f'{path} has from {min(counts)} to {max(counts)} answers to a problem',
  )

  def column(name):
    return [[e[name] for e in entries] for entries in problems.values()]

  return Answers(
    index=np.array(list(problems)),
    prompts=[row[0] for row in column('prompt')],
    answers=[row[0] for row in column('answer')],
    responses=column('response'),
    finished=np.array(column('finished'), bool),
    rewards=np.array(column('reward'), np.float32) if graded else None,
  )


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
      asked = examples.index, examples.prompts, examples.answers
      keep.writelines(_lines(Answers(*asked, texts, finished, scored.rewards)))
    scores.append(scored.rewards)
    failures.update(scored.failures)
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
    for part in parts[done:]:
      ids = [questions.ids[i] for i in part]
      width = _width(len(ids[0]), config.data.max_prompt)
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
      file.write(''.join(_lines(answers)))
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


def _width(longest: int, most: int) -> int:
  """The least of NARROWEST, twice that, ..., and `most` that holds a prompt."""
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


def _lines(answers: Answers) -> Iterator[str]:
  """One line of JSON per answer, with KEPT."""
  for b, g in np.ndindex(answers.finished.shape):
    graded = answers.rewards is not None
    entry = (
      int(answers.index[b]),
      answers.prompts[b],
      answers.answers[b],
      answers.responses[b][g],
      bool(answers.finished[b, g]),
      float(answers.rewards[b, g]) if graded else None,
    )
    yield json.dumps(dict(zip(KEPT, entry))) + '\n'


def _replace(path: pathlib.Path, text: str) -> None:
  """Writes a file that is either the old one or the new one at any time."""
  temporary = path.with_suffix('.tmp')
  temporary.write_text(text)
  temporary.rename(path)


def _some(names: Sequence[str]) -> str:
  shown = ', '.join(names[:10])
  return f'{shown} and {len(names) - 10} more' if len(names) > 10 else shown


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
