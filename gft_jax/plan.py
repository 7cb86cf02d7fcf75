"""Settings -> stages that are known to work, before anything runs."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax

from gft_jax import data
from gft_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  GroupConfig,
  RewardConfig,
  Stage,
  for_stage,
  one_of,
  profiled_steps,
  require,
  require_all,
)
from gft_jax.data import builders
from gft_jax.data.pipeline import Dataset
from gft_jax.evaluation.held_out import (
  EXPERT_ONLY,
  OWN,
  HeldOut,
  accuracy_names,
)
from gft_jax.parallel.mesh import check_divisible, check_rows
from gft_jax.policy import Policy
from gft_jax.rewards.functions import NOTHING, Wanted
from gft_jax.rewards.grader import evaluation_reward, wanted_by
from gft_jax.training import objectives
from gft_jax.training.objectives import Objective
from gft_jax.training.trial import try_objective
from gft_jax.types import Numbers


class Job(NamedTuple):
  """One stage, resolved.

  Attributes:
    stage: its node in the tree.
    config: the settings under the stage's overrides.
    objective: its row of the table.
    dataset: prompts and given answers to train on.
    held_out: what its evaluations ask.
    first_step: steps of all ancestors.
    total_updates: optimizer updates of the stage.
  """

  stage: Stage
  config: Config
  objective: Objective
  dataset: Dataset
  held_out: HeldOut
  first_step: int
  total_updates: int

  def score_of(self, evaluation: Numbers) -> float | None:
    """The number of an evaluation by which the best step is kept, if any."""
    best = self.config.checkpoint.best
    return evaluation[best] if best else None


class Loader(Protocol):
  """Loads a split of a dataset for a composition of groups."""

  def __call__(
    self,
    settings: DataConfig,
    group: GroupConfig,
    split: str,
    wanted: Wanted = NOTHING,
  ) -> Dataset: ...


def loader_of(config: Config, policy: Policy) -> Loader:
  """A loader that tokenises a split once, whatever stages share it."""

  @functools.cache
  def tokenised(
    settings: DataConfig, group: GroupConfig, split: str, wanted: Wanted
  ) -> Dataset:
    return data.load(
      settings, group, policy.tokenizer, split, config.seed, wanted
    )

  def load(
    settings: DataConfig,
    group: GroupConfig,
    split: str,
    wanted: Wanted = NOTHING,
  ) -> Dataset:
    # What a split holds does not depend on these.
    settings = dataclasses.replace(settings, batch_size=1, split='')
    group = dataclasses.replace(group, refills=0)
    return tokenised(settings, group, split, wanted)

  return load


def held_out_of(load: Loader, config: Config, settings: Config) -> HeldOut:
  """The held-out splits of the run's data that a stage evaluates on.

  Args:
    load: of the run.
    config: of the run, whose data are the same for all of its stages.
    settings: of the stage, which say what splits, and by what they are graded.
  """
  splits, demonstrations, wanted = settings.eval.splits, None, NOTHING
  if splits:
    wanted = wanted_by(evaluation_reward(settings))
    found = load(config.data, EXPERT_ONLY, splits[0])
    # Prompts alone are enough for rewards.
    demonstrations = found if found.statistics.tokens['expert'].size else None
  return HeldOut(
    splits={name: load(config.data, OWN, name, wanted) for name in splits},
    demonstrations=demonstrations,
  )


def plan_stages(config: Config, policy: Policy) -> list[Job]:
  """Resolves every stage, so that a mistake in the last stops the first.

  Raises:
    ConfigError: a setting of any stage that cannot work.
  """
  load = loader_of(config, policy)
  jobs: dict[str, Job] = {}
  for stage in config.stages:
    parent = jobs.get(stage.start)
    first_step = parent.first_step + parent.stage.steps if parent else 0
    jobs[stage.name] = _plan_stage(config, policy, load, stage, first_step)
  _check_base(config, jobs)
  _check_profile(config)
  return list(jobs.values())


def _plan_stage(
  config: Config, policy: Policy, load: Loader, stage: Stage, first_step: int
) -> Job:
  settings = for_stage(config, stage)
  try:
    objective = objectives.choose(stage.objective, settings.group)
  except ConfigError as error:
    raise ConfigError(
      f'stage {stage.name}: {error}; --set stages.{stage.name}.SETTING=VALUE'
      ' sets it in this stage alone'
    ) from error
  settings = dataclasses.replace(
    settings,
    loss=objectives.resolve(settings.loss, objective),
    group=objectives.resolve(settings.group, objective),
  )
  _check_run_wide(config, settings, stage)
  _check_objective(settings, objective, stage)
  try_objective(stage.objective, objective, settings.loss)
  _check_mesh(settings)
  room = policy.model.architecture.max_positions
  check_lengths(settings, config.data.max_prompt, room)
  _check_best(settings)
  _check_given(settings, objective, stage, config.seed)
  wanted = wanted_by(settings.reward) if objective.is_scored else NOTHING
  dataset = load(settings.data, settings.group, settings.data.split, wanted)
  # Refused here, before an earlier stage has trained.
  size, count = settings.data.batch_size, jax.process_count()
  dataset.batches(size, config.seed, shard_count=count)
  return Job(
    stage=stage,
    config=settings,
    objective=objective,
    dataset=dataset,
    held_out=held_out_of(load, config, settings),
    first_step=first_step,
    total_updates=stage.steps * settings.optimizer.mini_batches,
  )


def _check_given(
  settings: Config, objective: Objective, stage: Stage, seed: int
) -> None:
  """What has no default: a reward where answers are graded, and columns.

  Raises:
    ConfigError: all that is missing, in one line.
  """
  checks: list[Callable[[], object]] = []
  if objective.is_scored:
    checks.append(lambda: wanted_by(settings.reward))
  if settings.eval.splits:
    checks.append(lambda: wanted_by(evaluation_reward(settings)))
  checks.append(lambda: _check_split(settings.data, stage))
  checks.append(lambda: builders.check(settings.data, 'train', seed))
  require_all(*checks)


def _check_split(data: DataConfig, stage: Stage) -> None:
  """A file has two splits; recipes of the embedded task train on others."""
  require(
    builders.is_embedded(data) or data.split in ('train', 'test'),
    f'stage {stage.name} trains on split {data.split!r} of the embedded task;'
    f' stages.{stage.name}.data.split=train trains it on {data.path}',
  )


def _check_run_wide(config: Config, settings: Config, stage: Stage) -> None:
  """Settings of the whole run, which no stage may override."""
  same = {
    'model': settings.model == config.model,
    'mesh': settings.mesh == config.mesh,
    'seed': settings.seed == config.seed,
    'log': settings.log == config.log,
    'stages': settings.stages == config.stages,
    # Else evaluations would ask otherwise than the stage trains.
    'data.template_args': settings.data.template_args
    == config.data.template_args,
    'data.system': settings.data.system == config.data.system,
    'eval.base': settings.eval.base == config.eval.base,
    # Else rows that evaluations hold out of the same file would train.
    'data.eval_path': settings.data.eval_path == config.data.eval_path
    or settings.data.path != config.data.path,
  }
  for name, is_same in same.items():
    require(
      is_same,
      f'stages.{stage.name}.overrides: {name} belongs to the whole run',
    )


def _check_objective(
  settings: Config, objective: Objective, stage: Stage
) -> None:
  require(
    not settings.group.refills or objective.is_scored,
    f'group.refills={settings.group.refills} replaces groups by their rewards,'
    f' and objective {stage.objective} asks for none; set it to 0',
  )
  require(
    settings.sampler.temperature > 0 or not objective.on_policy,
    f'sampler.temperature=0 gives objective {stage.objective} of stage'
    f' {stage.name} no probabilities to divide by; set it above 0',
  )


def _check_mesh(settings: Config) -> None:
  """Whatever is cut must fill the devices that hold prompts."""
  optimizer, size = settings.optimizer, settings.data.batch_size
  check_divisible(
    size,
    settings.mesh,
    parts=optimizer.mini_batches * optimizer.micro_batches,
  )
  if settings.group.samples:
    check_rows('data.batch_size', size, settings.mesh)
  if settings.eval.splits:
    check_rows('eval.batch_size', settings.eval.batch_size, settings.mesh)


def sizes_of(config: Config) -> tuple[int, ...]:
  """Numbers of prompts that the devices of a run divide."""
  optimizer = config.optimizer
  parts = optimizer.mini_batches * optimizer.micro_batches
  evaluated = (config.eval.batch_size,) if config.eval.splits else ()
  return (config.data.batch_size // parts, *evaluated)


def _check_base(config: Config, stages: Iterable[str]) -> None:
  base = config.eval.base
  require(
    not base or base in stages,
    f'eval.base={base!r} is not a stage; stages: {", ".join(stages)}',
  )


def _check_profile(config: Config) -> None:
  profile = config.log.profile
  # Ranges from 1 or later; the stage of a budget has 2^30 steps.
  named = any(
    steps and steps.start <= stage.steps
    for stage in config.stages
    for steps in [profiled_steps(profile, stage.name)]
  )
  has = ', '.join(f'{stage.name} has {stage.steps}' for stage in config.stages)
  require(not profile or named, f'log.profile={profile!r} names no step; {has}')


def check_lengths(config: Config, asked: int, room: int) -> None:
  """Evaluations have prompts of up to `asked` tokens."""
  for prompt, setting, response in (
    (config.data.max_prompt, 'data.max_response', config.data.max_response),
    (asked, 'eval.max_response', config.eval.max_response),
  ):
    require(
      prompt + response <= room,
      f'data.max_prompt={prompt} and {setting}={response} take'
      f' {prompt + response} tokens, but the model has max_positions={room}',
    )


def _check_best(config: Config) -> None:
  best = config.checkpoint.best
  if best:
    one_of('checkpoint.best', best, accuracy_names(config.eval))
    require(
      config.eval.every > 0,
      f'checkpoint.best={best} compares evaluations, but eval.every=0 leaves one'
      ' only',
    )


def datasets_of(jobs: Sequence[Job]) -> Iterator[Dataset]:
  """Every dataset that the jobs train or evaluate on."""
  for job in jobs:
    splits, demonstrations = job.held_out
    for dataset in (job.dataset, *splits.values(), demonstrations):
      if dataset is not None:
        yield dataset


def warn_of_losses(datasets: Iterable[Dataset]) -> None:
  """Says once, in process 0, which rows are not used and why."""
  lines = (
    f'{x.name}: {line}' for x in datasets for line in x.statistics.lines()
  )
  for line in dict.fromkeys(lines):
    if jax.process_index() == 0:
      logging.warning('%s', line)


def fingerprints(jobs: Sequence[Job]) -> Iterator[tuple[str, str]]:
  """(name, fingerprint) of every dataset that the jobs train or evaluate on."""
  for dataset in datasets_of(jobs):
    yield dataset.name, dataset.fingerprint


def rewards_of(jobs: Sequence[Job]) -> set[RewardConfig]:
  """What the jobs grade by, in training and in evaluations.

  Raises:
    ConfigError: a job grades, and nothing says how.
  """
  training = {job.config.reward for job in jobs if job.objective.is_scored}
  evaluations = {
    evaluation_reward(job.config) for job in jobs if job.held_out.splits
  }
  return training | evaluations
