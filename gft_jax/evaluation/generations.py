"""Answers that are kept, and what is made of them without the model.

A line of NAME.jsonl is one answer to one problem. An answer is right where its
reward reaches `eval.threshold`. avg@n is the accuracy, the share of right
answers; pass@k is the unbiased estimate of Chen et al. 2021, maj@k the vote.
mean_reward is another number wherever rewards are not 0 or 1. Each has a 95 %
interval over problems.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from gft_jax.answers import extract
from gft_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  LogConfig,
  RewardConfig,
  differences,
  from_dict,
  require,
  to_dict,
)
from gft_jax.ops import passk
from gft_jax.rewards.functions import NOTHING, Wanted
from gft_jax.rewards.grader import Grader, Problems, score_groups, wanted_by
from gft_jax.rewards.tally import Tally
from gft_jax.run.files import write_whole
from gft_jax.types import Json, Params

# Bounds of what has none; JSON has no word for infinity.
UNBOUNDED = (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))
# What is kept of an answer.
KEPT = ('index', 'prompt', 'answer', 'response', 'finished', 'reward')


class Answers(NamedTuple):
  """Kept answers, G to each of B problems.

  Attributes:
    index: [B] int, numbers of the problems.
    prompts: B texts.
    answers: B reference answers.
    responses: [B][G] texts of the policy.
    finished: [B, G] bool, it stopped by itself.
    rewards: [B, G] float32; None before they are graded.
    columns: B texts of JSON, the columns that the reward took; or empty.
  """

  index: np.ndarray
  prompts: Sequence[str]
  answers: Sequence[str]
  responses: Sequence[Sequence[str]]
  finished: np.ndarray
  rewards: np.ndarray | None
  columns: Sequence[str] = ()

  @property
  def problems(self) -> Problems:
    """What the answers are graded by."""
    return Problems(self.prompts, self.answers, self.columns)

  @property
  def graded(self) -> np.ndarray:
    """[B, G] float32 rewards of answers that are graded."""
    assert self.rewards is not None, 'these answers are not graded'
    return self.rewards


def lines_of(answers: Answers) -> Iterator[str]:
  """One line of JSON per answer, with KEPT, and the columns if there are any."""
  for b, g in np.ndindex(answers.finished.shape):
    rewards = answers.rewards
    entry = (
      int(answers.index[b]),
      answers.prompts[b],
      answers.answers[b],
      answers.responses[b][g],
      bool(answers.finished[b, g]),
      None if rewards is None else float(rewards[b, g]),
    )
    kept = dict(zip(KEPT, entry))
    if answers.columns:
      kept['columns'] = json.loads(answers.columns[b])
    yield json.dumps(kept) + '\n'


def check_settings(
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
      kept = json.loads(path.read_text())
      known, begun = kept['facts'], from_dict(Config, kept['config'])
    except (ValueError, KeyError, TypeError):
      raise ConfigError(
        f'{path} is not of an evaluation; use a new --out'
      ) from None
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
  write_whole(
    path, json.dumps({'config': to_dict(config), 'facts': facts}, indent=1)
  )


def fingerprint(params: Params) -> str:
  """Tells policies apart: a digest of some numbers of each parameter."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    some = tuple(slice(None, None, max(1, n // 8)) for n in leaf.shape)
    digest.update(np.asarray(leaf[some]).tobytes())
  return digest.hexdigest()[:16]


def is_right(rewards: np.ndarray, threshold: float) -> np.ndarray:
  """Which answers are right: their reward is at least `threshold`.

  A weighted sum may miss it by the rounding of float32, which is forgiven.
  """
  return rewards >= threshold - 1e-6 * max(1.0, abs(threshold))


def accuracy(
  rewards: np.ndarray,
  ks: Sequence[int],
  votes: np.ndarray | None = None,
  *,
  threshold: float = 1.0,
) -> dict[str, float]:
  """Accuracy, pass@k, maj@k and the mean reward, with intervals.

  Args:
    rewards: [problems, n] of n answers to each problem.
    ks: each at most n.
    votes: [problems, n] of `votes_of`; None leaves maj@k out.
    threshold: an answer is right where its reward is at least this.

  Returns:
    'avg@n' (the share of right answers), 'pass@k', 'maj@k' and 'mean_reward',
    each also with '_low' and '_high'; and the 'threshold'.
  """
  n, right = rewards.shape[1], is_right(rewards, threshold)
  correct = np.sum(right, axis=1).astype(np.int32)
  values = {f'avg@{n}': right.mean(axis=1, dtype=np.float32)}
  for k in ks:
    samples = np.full_like(correct, n)
    values[f'pass@{k}'] = np.asarray(passk.pass_at_k(correct, samples, k))
  if votes is not None:
    for k in ks:
      majority = passk.majority_at_k(votes, right, k)
      values[f'maj@{k}'] = np.asarray(majority)
  values['mean_reward'] = rewards.mean(axis=1)
  # A learned reward, or one of your own, has no bounds.
  free = UNBOUNDED if np.any((rewards < 0) | (rewards > 1)) else (0.0, 1.0)
  metrics = {}
  for name, value in values.items():
    bounds = free if name == 'mean_reward' else (0.0, 1.0)
    mean, low, high = (float(x) for x in passk.interval(value, bounds))
    metrics |= {name: mean, f'{name}_low': low, f'{name}_high': high}
  return metrics | {'threshold': threshold}


def votes_of(kept: Answers, function: str) -> np.ndarray:
  """[B, G] int32: which answers to a problem say the same; -1 says nothing.

  Two say the same where `answers.extract` gives the same text: 1/2 and 0.5, but
  not x + 1 and 1 + x, though either may be right.

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
  path: pathlib.Path,
  reward: RewardConfig,
  ks: Sequence[int] = (),
  dataset: DataConfig | None = None,
  *,
  threshold: float = 1.0,
) -> dict[str, float]:
  """`accuracy` of kept answers under any reward, without the model.

  Args:
    path: NAME.jsonl.
    reward: how to grade.
    ks: each at most the answers per problem; empty: `sensible_ks` of those.
    dataset: where the problems come from, for columns that a reward takes and
      the kept answers lack.
    threshold: see `accuracy`.

  Raises:
    ConfigError: no such file, a line that is not a kept answer, too few
      answers, or no column that the reward takes.
    RewardError: a reward of the user failed for every answer.
  """
  kept = read_answers(path)
  problems, samples = kept.finished.shape
  ks = ks or sensible_ks(samples)
  require(
    max(ks) <= samples,
    f'{path} has {samples} answers to each of {problems} problems, too few for'
    f' eval.ks={tuple(ks)}',
  )
  with Grader(reward) as grader:
    require(
      not grader.asks_model,
      f'reward.function={reward.function!r} asks a reward model; kept answers'
      ' are graded by functions of text',
    )
    wanted = wanted_by(reward)
    if dataset and wanted != NOTHING:
      kept = kept._replace(columns=columns_of(kept, wanted, dataset, path))
    columns = json.loads(kept.columns[0]) if kept.columns else {}
    wanted.names(list(columns), f'the kept answers {path} without data.path')
    scored = score_groups(
      grader,
      kept.problems,
      kept.responses,
      np.ones_like(kept.finished),
      kept.finished,
    )
  tally = Tally()
  tally.add(scored.answers, scored.failed)
  tally.check(str(path), set())
  metrics = {'problems': problems}
  votes = votes_of(kept, reward.function)
  metrics |= accuracy(scored.values, ks, votes, threshold=threshold)
  return metrics | {
    f'reward_failures/{k}': v for k, v in scored.failures.items()
  }


def columns_of(
  kept: Answers, wanted: Wanted, dataset: DataConfig, path: pathlib.Path
) -> list[str]:
  """What a reward takes of the rows that kept answers were asked.

  Raises:
    ConfigError: the split that the file is named after has other problems, or
      no column that the reward takes.
  """
  from gft_jax.data import builders, carried  # seconds that most need not pay

  source = builders.source(dataset, path.stem)
  prompts = {row['row']: row['prompt'] for row in source.rows}
  asked = zip(kept.index.tolist(), kept.prompts)
  other = [str(i) for i, prompt in asked if prompts.get(i) != prompt]
  require(
    not other,
    f'{path} answers other problems than split {path.stem} of {source.name};'
    f' they differ in {shortened(other)}',
  )
  return carried.columns(source, wanted, kept.index.tolist())


def paired(
  before: pathlib.Path, after: pathlib.Path, *, threshold: float = 1.0
) -> dict[str, float]:
  """What a policy has forgotten, and learned, on the same problems.

  Args:
    before: kept answers of the policy that training began with.
    after: kept answers of what it became; they may be more or fewer per problem.
    threshold: an answer is right where its reward is at least this.

  Returns:
    problems: B.
    before, after: accuracies, shares of right answers.
    difference: mean over problems of (accuracy after - before), with
      'difference_low' and 'difference_high', the 95 % interval over problems of
      the paired difference.
    gained, lost: problems whose accuracy rose, and fell.
    mean_reward_before, mean_reward_after: over all answers.
    threshold: as given.

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
    f' {shortened(other)}',
  )
  shares = [
    is_right(kept.graded, threshold).mean(axis=1) for kept in (old, new)
  ]
  difference = shares[1] - shares[0]
  mean, low, high = (float(x) for x in passk.interval(difference, (-1.0, 1.0)))
  return {
    'problems': len(difference),
    'before': float(shares[0].mean()),
    'after': float(shares[1].mean()),
    'difference': mean,
    'difference_low': low,
    'difference_high': high,
    'gained': int((difference > 0).sum()),
    'lost': int((difference < 0).sum()),
    'mean_reward_before': float(old.graded.mean(dtype=np.float64)),
    'mean_reward_after': float(new.graded.mean(dtype=np.float64)),
    'threshold': threshold,
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
  problems: dict[int, list[Json]] = {}
  with path.open(encoding='utf-8', errors='replace') as lines:
    for number, line in enumerate(lines, 1):
      try:
        raw = json.loads(line)
        entry = {name: raw[name] for name in KEPT}
        taken = raw.get('columns')
        entry['columns'] = json.dumps(taken) if taken else ''
        texts = (entry[name] for name in ('prompt', 'answer', 'response'))
        complete = all(isinstance(text, str) for text in texts)
        complete &= isinstance(taken, dict | None)
        complete &= not graded or entry['reward'] + 0.0 == entry['reward']
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

  columns = [row[0] for row in column('columns')]
  return Answers(
    index=np.array(list(problems)),
    prompts=[row[0] for row in column('prompt')],
    answers=[row[0] for row in column('answer')],
    responses=column('response'),
    finished=np.array(column('finished'), bool),
    rewards=np.array(column('reward'), np.float32) if graded else None,
    columns=columns if all(columns) else (),
  )


def shortened(names: Sequence[str]) -> str:
  shown = ', '.join(names[:10])
  return f'{shown} and {len(names) - 10} more' if len(names) > 10 else shown
