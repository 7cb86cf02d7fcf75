"""Held-out evaluation of a stage: prompts in, numbers with intervals out.

Devices and graders are reached through the engine. Drift is exact over the
vocabulary, on the policy's own samples at temperature 1.
"""

import dataclasses
import functools
import itertools
import operator
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from gft_jax import data
from gft_jax.batch import GroupBatch, Responses
from gft_jax.config import Config, EvalConfig, GroupConfig, SamplerConfig
from gft_jax.data.pipeline import given_of, prompts_of
from gft_jax.engine import Engine
from gft_jax.evaluation.generations import Answers, accuracy, lines_of
from gft_jax.ops.rectification import dynamic_coefficient
from gft_jax.parallel import processes
from gft_jax.parallel.mesh import even_rows
from gft_jax.rewards.grader import evaluation_reward
from gft_jax.rewards.tally import Tally
from gft_jax.rollout import groups
from gft_jax.run.files import write_whole
from gft_jax.types import Numbers, Params

# Splits are read for own answers, or for experts' alone.
OWN = GroupConfig(experts=0, teachers=0, samples=1)
EXPERT_ONLY = GroupConfig(experts=1, teachers=0, samples=0)


class HeldOut(NamedTuple):
  """What is evaluated.

  Attributes:
    splits: name -> dataset (loaded for OWN), whose first rows are asked.
    demonstrations: expert answers (loaded for EXPERT_ONLY), or None.
  """

  splits: dict[str, data.Dataset]
  demonstrations: data.Dataset | None


@dataclasses.dataclass(frozen=True)
class HeldOutEvaluation:
  """One evaluation of one policy.

  Each process samples and grades its share. The numbers are of all of them,
  and process 0 writes the files.

  Attributes:
    engine: of the run.
    params: the policy.
    config: its `eval`, `sampler`, `reward` and `loss` are used.
    name: of this evaluation, for the journal of time-outs.
    before_batch: what it raises ends the evaluation.
  """

  engine: Engine
  params: Params
  config: Config
  name: str
  before_batch: Callable[[], None] = lambda: None

  def measure(
    self,
    held_out: HeldOut,
    base: Params | None,
    *,
    figures: pathlib.Path,
    generations: pathlib.Path | None = None,
  ) -> Numbers:
    """Accuracy, mean reward, likelihood of experts, and drift from the base.

    Args:
      held_out: splits and demonstrations.
      base: parameters of the base policy, or None for no drift.
      figures: file that receives the weights of Figure 2.
      generations: folder that receives every graded answer, SPLIT.jsonl; None
        keeps none.

    Returns:
      'eval/...' -> number.

    Raises:
      RewardError: a reward of the user failed for every answer of a split.
    """
    metrics: Numbers = {}
    for number, (split, dataset) in enumerate(held_out.splits.items()):
      kept = generations / f'{split}.jsonl' if generations else None
      scores, failures = self._answers(dataset, split, number, kept)
      settings = self.config.eval
      values = accuracy(scores, settings.ks, threshold=settings.threshold)
      values |= {f'reward_failures/{k}': v for k, v in failures.items()}
      metrics |= {f'{split}/{k}': v for k, v in values.items()}
    if held_out.demonstrations:
      metrics |= self._demonstrations(held_out.demonstrations, figures)
    if base is not None and self.config.eval.kl_prompts and held_out.splits:
      metrics |= self._drift(base, next(iter(held_out.splits.values())))
    return {f'eval/{k}': v for k, v in metrics.items()}

  def _answers(
    self,
    dataset: data.Dataset,
    split: str,
    number: int,
    kept: pathlib.Path | None,
  ) -> tuple[np.ndarray, dict[str, int]]:
    """Scores [problems, samples] of sampled answers, and failures by cause.

    The answers go to the file `kept`.
    """
    settings, engine = self.config.eval, self.engine
    sampling = dataclasses.replace(
      self.config.sampler, temperature=settings.temperature
    )
    key = engine.key('evaluate', number)
    scores, tally, lines = [], Tally(), []
    for batch, (examples, real) in enumerate(
      self._shares(dataset, settings.prompts)
    ):
      prompts = prompts_of(examples)
      responses = engine.sample(
        self.params,
        prompts,
        key,
        sampling,
        settings.samples,
        settings.max_response,
      )
      texts, finished = engine.decode(responses, sampling, prompts)
      scored = engine.score(
        evaluation_reward(self.config),
        f'{self.name}/{split}/{batch}',
        examples.problems,
        texts,
        (np.asarray(responses.length) > 0) & real[:, None],
        finished,
      )
      if kept:
        problems = examples.index, examples.prompts, examples.answers
        answers = Answers(
          *problems, texts, finished, scored.values, examples.columns
        )
        own = list(lines_of(answers))[: real.sum() * settings.samples]
        lines += itertools.chain(*processes.exchange(own))
      graded, counted = processes.gather((scored.values, real))
      scores.append(graded[counted])
      tally.add(scored.answers, scored.failed)
    if kept and jax.process_index() == 0:
      kept.parent.mkdir(parents=True, exist_ok=True)
      write_whole(kept, ''.join(lines))
    tally.check(f'evaluation {self.name} of {split}', engine.told)
    return np.concatenate(scores), tally.counts

  def _demonstrations(
    self, dataset: data.Dataset, figures: pathlib.Path
  ) -> Numbers:
    """Likelihood of held-out expert answers.

    C/p, the multiplier of grad p, before (C = 1) and after rectification goes
    to `figures` for the report.
    """
    loss, parts = self.config.loss, []
    for examples, real in self._shares(dataset, self.config.eval.prompts):
      given = _only(given_of(examples), real)
      batch = groups.unscored(prompts_of(examples), given, len(real))
      logp = self.engine.token_logprobs(self.params, batch, chunk=loss.chunk)
      logp, mask = processes.gather((logp, np.asarray(batch.token_mask)))
      parts.append(logp[mask])
    logp = np.concatenate(parts)
    coefficient = np.asarray(dynamic_coefficient(logp, tau=loss.tau))
    if jax.process_index() == 0:
      figures.parent.mkdir(parents=True, exist_ok=True)
      np.savez(figures, before=np.exp(-logp), after=coefficient * np.exp(-logp))
    return {
      'expert_logp': float(logp.mean()),
      'expert_rectified_fraction': float(np.mean(coefficient < 1)),
    }

  def _drift(self, base: Params, dataset: data.Dataset) -> Numbers:
    """`forward.drift` on one sample per prompt."""
    settings, engine, totals = self.config.eval, self.engine, []
    sampling = SamplerConfig(
      temperature=1.0,
      stop_ids=self.config.sampler.stop_ids,
      stop_strings=self.config.sampler.stop_strings,
    )
    key = engine.key('drift', 0)
    for examples, real in self._shares(dataset, settings.kl_prompts):
      prompts = prompts_of(examples)
      responses = engine.sample(
        self.params, prompts, key, sampling, 1, settings.max_response
      )
      batch = groups.unscored(prompts, _only(responses, real), len(real))
      totals.append(
        engine.drift(self.params, base, batch, chunk=self.config.loss.chunk)
      )
    columns = {name: [part[name] for part in totals] for name in totals[0]}
    return {
      name: float(functools.reduce(operator.add, column).value)
      for name, column in columns.items()
    }

  def _shares(
    self, dataset: data.Dataset, count: int
  ) -> Iterator[tuple[data.Examples, np.ndarray]]:
    """This process's part of each batch, and which of its rows are real.

    The first `count` rows in order, in batches of one size; the last is filled
    with its last row.
    """
    count = min(count, len(dataset))
    size = even_rows(count, self.config.eval.batch_size, self.config.mesh)
    for start in range(0, count, size):
      self.before_batch()
      rows = np.arange(start, start + size)[processes.own_rows(size)]
      yield dataset.examples(np.minimum(rows, count - 1)), rows < count


def accuracy_names(settings: EvalConfig) -> list[str]:
  """What `HeldOutEvaluation` counts of graded answers, without the intervals."""
  kinds = [f'avg@{settings.samples}', *[f'pass@{k}' for k in settings.ks]]
  kinds.append('mean_reward')
  return [f'eval/{split}/{kind}' for split in settings.splits for kind in kinds]


def group_logprobs(
  engine: Engine, params: Params, batch: GroupBatch, config: Config, width: int
) -> np.ndarray:
  """[B, G, T] log-probabilities of groups that every process holds.

  Each answer stands in a row of its own, and is padded to `width` tokens: with
  that of the demonstrations, their program serves.
  """
  settings, shape = config.eval, batch.responses.tokens.shape
  size = even_rows(settings.prompts, settings.batch_size, config.mesh)
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
    rows = np.arange(start, start + size)[processes.own_rows(size)]
    rows = np.minimum(rows, count - 1)
    own = jax.tree.map(lambda x, rows=rows: x[rows], (prompts, given))
    logp = engine.token_logprobs(
      params,
      groups.unscored(own[0], own[1], len(rows)),
      chunk=config.loss.chunk,
    )
    parts.append(processes.gather(logp))
  logp = np.concatenate(parts)[:count, 0, : shape[-1]]
  return logp.reshape(shape)


def _only(responses: Responses, real: np.ndarray) -> Responses:
  """Rows that are not real become empty slots."""
  length = np.where(real[:, None], responses.length, 0)
  return responses.replace(length=length)
