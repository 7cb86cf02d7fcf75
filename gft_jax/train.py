"""train(config, workdir): stages and the loop.

A run is a tree of stages. A stage is a generator of steps,

  prompts -> sampled answers -> scores -> groups -> update,

and one consumer at the edge that writes metrics, evaluates and saves. The
generator dispatches step n before the consumer reads the metrics of n - 1.

Steps count from the root of the tree, so sibling stages see the same prompts
and the same random bits. With the data position in the checkpoint, a resumed
run repeats the uninterrupted one bit for bit.
"""

import collections
import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
import math
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.training.train_state import TrainState

from gft_jax import (
  checkpoint,
  data,
  evaluate,
  groups,
  objectives,
  parallel,
  profiling,
  report,
  report_groups,
  rewards,
  train_step,
  writers,
)
from gft_jax.batch import GroupBatch, host_mask
from gft_jax.config import (
  Config,
  ConfigError,
  RewardConfig,
  Stage,
  differences,
  for_stage,
  from_dict,
  one_of,
  profiled_steps,
  require,
  to_dict,
)
from gft_jax.data import arithmetic
from gft_jax.engine import Engine, Judge, Policy, key_of, spread
from gft_jax.generations import write_whole
from gft_jax.models import hub, huggingface, lora, transformer
from gft_jax.optimizer import make_schedule

Record = dict[str, Any]

FLOAT32_MAX = float(np.finfo(np.float32).max)


class NonFiniteError(FloatingPointError):
  """Loss or gradient is not finite; the message names stage and step."""


class Preempted(InterruptedError):
  """The run was asked to stop; the message says what is saved."""


class Job(NamedTuple):
  """One stage, resolved.

  Attributes:
    stage: its node in the tree.
    config: the settings under the stage's overrides.
    objective: its row of the table.
    dataset: prompts and given answers to train on.
    benchmark: what its evaluations ask.
    first_step: steps of all ancestors.
    total_updates: optimizer updates of the stage.
  """

  stage: Stage
  config: Config
  objective: objectives.Objective
  dataset: data.Dataset
  benchmark: evaluate.Benchmark
  first_step: int
  total_updates: int


class Spent(NamedTuple):
  """What a stage has used of its budget.

  Attributes:
    tokens: response tokens that have trained.
    seconds: of training steps, the first after each start left out, in which
      programs are compiled.
  """

  tokens: int = 0
  seconds: float = 0.0

  def reaches(self, stage: Stage) -> bool:
    return 0 < stage.tokens <= self.tokens or 0 < stage.seconds <= self.seconds


class Stopwatch:
  """Seconds since the last lap; the first lap counts nothing."""

  def __init__(self):
    self._start: float | None = None

  def restart(self) -> None:
    self._start = time.perf_counter()

  def lap(self) -> float:
    start, self._start = self._start, time.perf_counter()
    return self._start - start if start is not None else 0.0


def train(
  config: Config, workdir: str | pathlib.Path
) -> dict[str, dict[str, float]]:
  """Runs, or resumes, every stage.

  Afterwards `workdir` holds config.json, data.json, metrics.jsonl,
  checkpoints/ and report/. A finished stage is not run again.

  Returns:
    The last evaluation of each stage, by stage.

  Raises:
    ConfigError: a setting that cannot work, a workdir begun under another
      config, on other data, or in use by another run. Nothing has been written
      then.
    NonFiniteError: the last good checkpoint stands.
    Preempted: SIGTERM came; the step in progress is done and saved. An
      evaluation in progress is done when the same command continues.
    checkpoint.SaveError: the disk is full; the last checkpoint stands.
    parallel.LostProcessError: another process of the run is gone.
  """
  started = time.time()
  workdir = pathlib.Path(workdir)
  check_workdir(workdir, config)
  mesh = parallel.make_mesh(config.mesh)
  policy = load_policy(config)
  jobs = plan(config, policy)
  with parallel.connected(), contextlib.ExitStack() as stack:
    graders = {
      settings: stack.enter_context(rewards.Grader(settings))
      for settings in {
        reward
        for job in jobs
        for reward in (job.config.reward, evaluate.reward_of(job.config))
      }
    }
    judges = load_judges(graders, mesh)
    stack.enter_context(claim(workdir, config))
    check_data(workdir, jobs)
    preempted = stack.enter_context(_sigterm())
    writer = stack.enter_context(
      contextlib.closing(
        writers.make_writer(workdir, config.log)
        if jax.process_index() == 0
        else writers.Writer()
      )
    )
    saver = stack.enter_context(checkpoint.Saver())
    journal = rewards.Journal(workdir / 'timeouts.jsonl')
    engine = Engine(config, policy, mesh, graders, journal, judges)
    profiler = stack.enter_context(
      contextlib.closing(
        profiling.Profiler(workdir / 'profile', config.log.profile)
      )
    )
    loop = Loop(
      config,
      workdir,
      policy,
      engine,
      writer,
      saver,
      profiler,
      preempted,
      started,
    )
    results = {job.stage.name: loop.run(job) for job in jobs}
    if config.log.report and jax.process_index() == 0:
      report.write_report(workdir)
    parallel.barrier()  # Nobody leaves before the report is there.
  return results


def result_of(
  policy: Policy,
  workdir: str | pathlib.Path,
  stage: str,
  *,
  best: bool = False,
) -> tuple[Any, int]:
  """Parameters that a stage has reached, and its step.

  With `best` those of the step with the largest `checkpoint.best`.

  Raises:
    ConfigError: the stage has no such checkpoint that verifies.
  """
  directory = _stage_directory(pathlib.Path(workdir), stage)
  try:
    return checkpoint.restore_params(directory, policy.params, best=best)
  except FileNotFoundError as error:
    raise ConfigError(str(error)) from None


def evaluate_policy(
  config: Config,
  outdir: str | pathlib.Path,
  policy: Policy,
  params: Any,
) -> dict[str, float]:
  """Evaluates parameters by the top-level settings of `config`.

  KL is to `policy.params`. What the figures need goes to `outdir`/report/, the
  answers to `outdir`/generations/.
  """
  gft = objectives.OBJECTIVES['gft']  # whose coefficients the figure shows
  config = dataclasses.replace(
    config, loss=objectives.resolve(config.loss, gft)
  )
  parallel.check_rows('eval.batch_size', config.eval.batch_size, config.mesh)
  _check_lengths(
    config, config.data.max_prompt, policy.model.architecture.max_positions
  )
  benchmark = _benchmark(_loader(config, policy), config, config.eval.splits)
  outdir = pathlib.Path(outdir)
  # It is never resumed: another evaluation's time-outs are none of its own.
  with engine_of(config, policy, outdir, resumed=False) as engine:
    return evaluate.held_out(
      engine,
      params,
      policy.params,
      benchmark,
      config,
      name='evaluation',
      figures=coefficients_file(outdir, 'evaluation'),
      generations=outdir / 'generations',
    )


def questions_of(
  config: Config, policy: Policy, name: str, rows: Sequence[Mapping[str, str]]
) -> evaluate.Questions:
  """The rows of a public benchmark as the policy is asked them.

  See evaluate.questions_of.
  """
  unknown = data.unknown_id(policy.tokenizer)
  encoded = data.encode_prompts(
    [row['prompt'] for row in rows], config.data, policy.tokenizer
  )
  return evaluate.questions_of(
    name,
    rows,
    [[] if unknown in ids else ids for ids in encoded],
    # The answer needs a position too.
    min(config.data.max_prompt, policy.model.architecture.max_positions - 1),
    config.data.max_dropped,
  )


def evaluate_benchmark(
  config: Config,
  outdir: str | pathlib.Path,
  policy: Policy,
  params: Any,
  questions: evaluate.Questions,
) -> dict[str, float]:
  """Asks a public benchmark, or goes on; see evaluate.benchmark.

  Args:
    config: the settings of this benchmark.
    outdir: the answers go to its folder generations/.
    policy: its model and tokenizer.
    params: what answers.
    questions: of `questions_of`.

  Returns:
    'eval/NAME/...' -> number.
  """
  outdir = pathlib.Path(outdir)
  with engine_of(config, policy, outdir) as engine:
    metrics = evaluate.benchmark(
      engine, params, questions, config, outdir / 'generations'
    )
  return {f'eval/{questions.name}/{k}': v for k, v in metrics.items()}


@contextlib.contextmanager
def engine_of(
  config: Config, policy: Policy, outdir: pathlib.Path, *, resumed: bool = True
) -> Iterator[Engine]:
  """The compiled programs and the top-level reward, outside of a run.

  Where it can be resumed, answers that hit the time limit are journalled in
  `outdir`.
  """
  mesh = parallel.make_mesh(config.mesh)
  with contextlib.ExitStack() as stack:
    graders = {
      settings: stack.enter_context(rewards.Grader(settings))
      for settings in {config.reward, evaluate.reward_of(config)}
    }
    judges = load_judges(graders, mesh)
    outdir.mkdir(parents=True, exist_ok=True)
    path = outdir / 'timeouts.jsonl'
    journal = rewards.Journal(path) if resumed else None
    yield Engine(config, policy, mesh, graders, journal, judges)


def load_judges(
  graders: dict[RewardConfig, rewards.Grader], mesh: jax.sharding.Mesh
) -> dict[str, Judge]:
  """The reward models that the graders ask, by their folders."""
  folders = {settings.model for settings, g in graders.items() if g.asks_model}
  return {
    folder: Judge(Policy(*huggingface.load_reward_model(folder), ()), mesh)
    for folder in folders
  }


def load_policy(config: Config) -> Policy:
  """The model of the config, or fresh parameters, on its mesh.

  With `model.lora` the model's are frozen, and fresh adapters trained.
  """
  settings = config.model
  key = key_of(config.seed, 'init', 0)
  dtypes = {
    'dtype': settings.dtype,
    'param_dtype': settings.param_dtype,
    'remat': settings.remat,
  }
  if settings.path:
    mesh = parallel.make_mesh(config.mesh)
    shardings = functools.partial(parallel.parameter_shardings, mesh=mesh)
    folder = hub.folder_of(settings.path)
    model, params, tokenizer = huggingface.load(
      folder, **dtypes, shardings=shardings
    )
    stop_ids = huggingface.stop_ids(
      folder, tokenizer, model.architecture.vocab_size
    )
  else:
    if settings.lora.rank:
      raise ConfigError(
        f'model.lora.rank={settings.lora.rank} would freeze random weights; set'
        ' model.path, or rank 0'
      )
    if settings.tokenizer:
      tokenizer = huggingface.load_tokenizer(settings.tokenizer)
    else:
      tokenizer = arithmetic.tokenizer()
    architecture = settings.architecture
    if not architecture.vocab_size:
      architecture = dataclasses.replace(
        architecture, vocab_size=len(tokenizer)
      )
    model = transformer.Transformer(architecture, **dtypes)
    params = jax.jit(model.init)(
      key,
      jnp.zeros((1, 1), jnp.int32),
      jnp.ones(1, jnp.int32),
    )['params']
    params = spread(lambda x: x, params, parallel.make_mesh(config.mesh))
    stop_ids = (tokenizer.eos_token_id,)
  frozen = None
  if settings.lora.rank:
    model, frozen = model.clone(lora=settings.lora), params
    params = lora.create(model, key, shardings)
  stop_ids = (*stop_ids, *config.sampler.stop_ids)
  return Policy(model, params, tokenizer, stop_ids, frozen)


def _loader(config: Config, policy: Policy) -> Callable[..., data.Dataset]:
  """`load(settings, group, split)`, which tokenises a split once."""

  @functools.cache
  def tokenised(settings, group, split):
    return data.load(settings, group, policy.tokenizer, split, config.seed)

  def load(settings, group, split):
    # What a split holds does not depend on these: stages share it.
    settings = dataclasses.replace(settings, batch_size=1, split='')
    group = dataclasses.replace(group, refills=0)
    return tokenised(settings, group, split)

  return load


def _benchmark(
  load: Callable[..., data.Dataset], config: Config, splits: Sequence[str]
) -> evaluate.Benchmark:
  """Those held-out splits of the run's data, the same for all of its stages."""
  shown = None
  if splits:
    shown = load(config.data, evaluate.EXPERT_ONLY, splits[0])
    # Prompts alone are enough for rewards.
    shown = shown if shown.statistics.tokens['expert'].size else None
  return evaluate.Benchmark(
    splits={name: load(config.data, evaluate.OWN, name) for name in splits},
    demonstrations=shown,
  )


def plan(config: Config, policy: Policy) -> list[Job]:
  """Resolves every stage, so that a mistake in the last stops the first."""
  load = _loader(config, policy)
  jobs: dict[str, Job] = {}
  for stage in config.stages:
    settings = for_stage(config, stage)
    objective = objectives.choose(stage.objective, settings.group)
    settings = dataclasses.replace(
      settings,
      loss=objectives.resolve(settings.loss, objective),
      group=objectives.resolve(settings.group, objective),
    )
    if settings.group.refills and objective.advantages is None:
      raise ConfigError(
        f'group.refills={settings.group.refills} replaces groups by their'
        f' rewards, and objective {stage.objective} asks for none; set it to 0'
      )
    for name, same in {
      'model': settings.model == config.model,
      'mesh': settings.mesh == config.mesh,
      'seed': settings.seed == config.seed,
      'log': settings.log == config.log,
      'stages': settings.stages == config.stages,
      'sampler.stop_ids': settings.sampler.stop_ids == config.sampler.stop_ids,
      'eval.base': settings.eval.base == config.eval.base,
      # Else rows that evaluations hold out of the same file would train.
      'data.eval_path': settings.data.eval_path == config.data.eval_path
      or settings.data.path != config.data.path,
    }.items():
      require(
        same, f'stages.{stage.name}.overrides: {name} belongs to the whole run'
      )
    require(
      settings.sampler.temperature > 0 or not objective.on_policy,
      f'sampler.temperature=0 gives objective {stage.objective} of stage'
      f' {stage.name} no probabilities to divide by; set it above 0',
    )
    parallel.check_divisible(
      settings.data.batch_size,
      settings.mesh,
      parts=settings.optimizer.mini_batches * settings.optimizer.micro_batches,
    )
    if settings.group.samples:
      rows = settings.data.batch_size
      parallel.check_rows('data.batch_size', rows, settings.mesh)
    if settings.eval.splits:
      rows = settings.eval.batch_size
      parallel.check_rows('eval.batch_size', rows, settings.mesh)
    room = policy.model.architecture.max_positions
    _check_lengths(settings, config.data.max_prompt, room)
    _check_best(settings)
    parent = jobs.get(stage.start)
    first_step = parent.first_step + parent.stage.steps if parent else 0
    dataset = load(settings.data, settings.group, settings.data.split)
    # Refused here, before an earlier stage has trained.
    size, count = settings.data.batch_size, jax.process_count()
    dataset.batches(size, config.seed, shard_count=count)
    jobs[stage.name] = Job(
      stage=stage,
      config=settings,
      objective=objective,
      dataset=dataset,
      benchmark=_benchmark(load, config, settings.eval.splits),
      first_step=first_step,
      total_updates=stage.steps * settings.optimizer.mini_batches,
    )
  base = config.eval.base
  if base and base not in jobs:
    raise ConfigError(
      f'eval.base={base!r} is not a stage; stages: {", ".join(jobs)}'
    )
  profile = config.log.profile
  if profile and not any(
    step in profiled_steps(profile, stage.name)
    for stage in config.stages
    for step in range(1, stage.steps + 1)
  ):
    has = ', '.join(
      f'{stage.name} has {stage.steps}' for stage in config.stages
    )
    raise ConfigError(f'log.profile={profile!r} names no step; {has}')
  return list(jobs.values())


def _check_lengths(config: Config, asked: int, room: int) -> None:
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
    one_of('checkpoint.best', best, evaluate.names(config.eval))
    require(
      config.eval.every > 0,
      f'checkpoint.best={best} compares evaluations, but eval.every=0 leaves one'
      ' only',
    )


def check_workdir(workdir: pathlib.Path, config: Config) -> None:
  """Refuses a workdir that was begun under another config, log.* aside."""
  path = workdir / 'config.json'
  if path.exists():
    try:
      begun = from_dict(Config, json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
      raise ConfigError(
        f'{path} is damaged ({error}); restore it, or use a new --workdir'
      ) from error
    changed = differences(dataclasses.replace(begun, log=config.log), config)
    if changed:
      raise ConfigError(
        f'{workdir} was begun under another config; changed:'
        f' {"; ".join(changed)}; use a new --workdir'
      )


@contextlib.contextmanager
def claim(workdir: pathlib.Path, config: Config) -> Iterator[None]:
  """Holds a workdir for this run; config.json is written whole.

  The lock is process 0's and ends with it, however it ends.

  Raises:
    ConfigError: another run holds it.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / 'lock').open('a') as lock:
    held = False
    if jax.process_index() == 0:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        held = True
    if parallel.anywhere(held)[0]:
      raise ConfigError(
        f'{workdir} is in use by another run; wait for it, or use a new'
        ' --workdir'
      )
    check_workdir(workdir, config)  # Another run may have begun it meanwhile.
    parallel.barrier()
    if jax.process_index() == 0:
      write_whole(
        workdir / 'config.json', json.dumps(to_dict(config), indent=1)
      )
    yield


def check_data(workdir: pathlib.Path, jobs: Sequence[Job]) -> None:
  """Refuses a workdir that was begun on other data; data.json keeps on which.

  Raises:
    ConfigError: a token of a row that is used has changed; the line names the
      file.
  """
  prints = collections.defaultdict(set)
  for job in jobs:
    splits, demonstrations = job.benchmark
    for dataset in (job.dataset, *splits.values(), demonstrations):
      if dataset is not None:
        prints[dataset.name].add(dataset.fingerprint)
  found = {name: sorted(prints[name]) for name in prints}
  path = workdir / 'data.json'
  if path.exists():
    begun = json.loads(path.read_text())
    changed = [name for name in found if begun.get(name) != found[name]]
    require(
      not changed,
      f'{workdir} was begun on other data; changed: {"; ".join(changed)};'
      ' restore the file, or use a new --workdir',
    )
  elif jax.process_index() == 0:
    write_whole(path, json.dumps(found, indent=1))


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
  """An event that SIGTERM sets, where this thread may listen to signals."""
  event = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield event
    return
  before = signal.signal(signal.SIGTERM, lambda *_: event.set())
  try:
    yield event
  finally:
    signal.signal(signal.SIGTERM, before)


class Loop:
  """Carries things between the rooms."""

  def __init__(
    self,
    config: Config,
    workdir: pathlib.Path,
    policy: Policy,
    engine: Engine,
    writer: writers.Writer,
    saver: checkpoint.Saver,
    profiler: profiling.Profiler,
    preempted: threading.Event,
    started: float,
  ):
    self.config = config
    self.workdir = workdir
    self.policy = policy
    self.engine = engine
    self.writer = writer
    self.saver = saver
    self.profiler = profiler
    self.preempted = preempted
    # How much of metrics.jsonl the last checkpoint vouches for.
    self.metrics_bytes = 0
    # The Unix time up to which every second is accounted for, and what is known
    # of earlier processes once a stage begins.
    self.since = started
    self.past: writers.Past | None = None
    # What belongs to no step; the next record takes it.
    self.between = writers.Clock()

  def run(self, job: Job) -> dict[str, float]:
    """Runs or resumes one stage; returns its last evaluation."""
    stage = job.stage
    directory = _stage_directory(self.workdir, stage.name)
    batches = job.dataset.batches(
      job.config.data.batch_size,
      self.config.seed + job.first_step,
      jax.process_index(),
      jax.process_count(),
    )
    start = self._result_of(stage.start)
    begin = self.engine.fresh_state(
      start, job.config.optimizer, job.total_updates
    )
    reference = self.engine.copy(start) if job.config.loss.kl_weight else None
    del start  # It would lie beside the state as long as the stage runs.
    done, evaluation, spent = 0, {}, Spent()
    restored = checkpoint.restore(directory, begin)
    if restored:
      done, begin = restored.step, restored.state
      batches.set_state(restored.position['data'])
      evaluation = restored.position['evaluation']
      spent = Spent(**restored.position['spent'])
      self.metrics_bytes = restored.position['metrics_bytes']
      if restored.position['finished']:
        return evaluation
    self._begin()
    self._void_later(stage, done)
    self.writer.begin(stage.name, stage.steps, done, self.metrics_bytes)
    loaded = not stage.start and bool(self.config.model.path)
    if loaded and not done and job.config.eval.before:
      self._write(self._evaluate(job, begin.params, 0, last=False))
    if restored and restored.position.get('owes'):
      evaluation = self._catch_up(job, restored)
      if restored.position['owes'] == 'last':
        self.since = time.time()
        return evaluation
    pending: Callable[[], Record] | None = None
    watch = Stopwatch()
    for step, state, read, tokens in self._steps(
      job, begin, reference, batches, done
    ):
      if pending:
        self._write(pending())
      pending = read
      spent = Spent(spent.tokens + tokens, spent.seconds + watch.lap())
      spends, stops = self.engine.anywhere(
        spent.reaches(stage), self.preempted.is_set()
      )
      last = step == stage.steps or spends
      evaluates = last or _due(step, job.config.eval.every)
      best = job.config.checkpoint.best
      saves = (
        last
        or stops
        or _due(step, job.config.checkpoint.every)
        or (evaluates and bool(best))
      )
      if evaluates or saves:
        self._write(pending())
        pending = None
        spent = Spent(spent.tokens, spent.seconds + watch.lap())
      owes = ''
      if evaluates:
        try:
          evaluation = self._evaluated(job, state.params, step, last=last)
          (stops,) = self.engine.anywhere(self.preempted.is_set())
        except Preempted:
          # An evaluation may take long, and who preempts does not wait.
          stops, owes = True, 'last' if last else 'step'
        saves = saves or stops
      if saves:
        self.metrics_bytes = self.writer.position()
        position = {
          'data': batches.get_state(),
          'metrics_bytes': self.metrics_bytes,
          'evaluation': evaluation,
          'spent': spent._asdict(),
          'finished': last and not owes,
          'owes': owes,
          'score': evaluation[best]
          if evaluates and best and not owes
          else None,
        }
        with self.between.phase('save'):
          self.saver.save(
            directory,
            step,
            state,
            position,
            keep=job.config.checkpoint.keep,
            keep_best=bool(best),
          )
      if last or stops:
        with self.between.phase('save'):
          self.saver.wait()
      if stops:
        raise Preempted(
          f'SIGTERM: stage {stage.name} is saved at step {step}; the same'
          ' command continues'
        )
      if last:
        break
      watch.restart()
    self.since = time.time()
    return evaluation

  def _evaluated(
    self, job: Job, params: Any, step: int, *, last: bool
  ) -> dict[str, float]:
    """An evaluation that is written; its numbers alone."""
    record = self._evaluate(job, params, step, last=last)
    self._write(record)
    return {k: v for k, v in record.items() if k.startswith('eval/')}

  def _catch_up(
    self, job: Job, restored: checkpoint.Restored
  ) -> dict[str, float]:
    """Does the evaluation in which the run was stopped."""
    last, best = restored.position['owes'] == 'last', job.config.checkpoint.best
    evaluation = self._evaluated(
      job, restored.state.params, restored.step, last=last
    )
    self.metrics_bytes = self.writer.position()
    position = restored.position | {
      'metrics_bytes': self.metrics_bytes,
      'evaluation': evaluation,
      'finished': last,
      'owes': '',
      'score': evaluation[best] if best else None,
    }
    directory = _stage_directory(self.workdir, job.stage.name)
    with self.between.phase('save'):
      checkpoint.amend(directory, restored.step, position)
    return evaluation

  def _begin(self) -> None:
    """A stage begins: what has passed since the last one, or ever."""
    if self.past is None:
      self.past = writers.past(self.workdir, self.metrics_bytes, self.since)
      for name, seconds in self.past._asdict().items():
        if seconds:
          self.between.add(f'time/{name}', seconds)
    self.between.add('time/start', time.time() - self.since)

  def _write(self, record: Record) -> None:
    """Writes it with what belongs to no step, and when that was."""
    record = self.between.added_to(record)
    self.between = writers.Clock()
    wall = {'time/wall': time.time() - self.past.begun}
    self.writer.write(record | wall)

  def _void_later(self, stage: Stage, done: int) -> None:
    """Removes what later stages saved, if this one is not whole after all.

    That happens where its last checkpoint was damaged. Metrics are cut back to
    what is done, and a later checkpoint vouches for more than that.
    """
    stages = self.config.stages
    for later in stages[stages.index(stage) + 1 :]:
      directory = _stage_directory(self.workdir, later.name)
      if jax.process_index() == 0 and directory.exists():
        logging.warning(
          'stage %s goes on from step %d, so %s begins anew',
          *(stage.name, done, later.name),
        )
        shutil.rmtree(directory)

  def _steps(
    self,
    job: Job,
    state: TrainState,
    reference: Any | None,
    batches: data.Batches,
    step: int,
  ) -> Iterator[tuple[int, TrainState, Callable[[], Record], int]]:
    """Yields (step, state, read, tokens); `read()` waits for the metrics.

    The yielded state is donated to the next step.
    """
    settings, name = job.config, job.stage.name
    schedule = make_schedule(settings.optimizer, job.total_updates)
    while step < job.stage.steps:
      step += 1
      clock = writers.Clock()
      with self.profiler.step(name, step):
        batch, record = self._rollout(job, state.params, batches, step, clock)
        updates = (step - 1) * settings.optimizer.mini_batches
        record['train/learning_rate'] = float(schedule(updates))
        with clock.phase('update'):
          state, metrics, maxima = self.engine.update(
            state, batch, reference, job.objective, settings
          )
          waits = settings.group.samples or jax.process_count() > 1
          if waits or self.profiler.traces(name, step):
            # The next rollout needs these parameters: nothing is lost by
            # waiting, and the seconds are charged to the phase that spends
            # them. Processes talk after each step, and never two of their
            # programs at one time.
            jax.block_until_ready(metrics)

      def read(step=step, record=record, clock=clock, result=(metrics, maxima)):
        with clock.phase('update'):
          record |= _floats(*result)
        check_finite(name, step, record, ('train/loss', 'train/grad_norm'))
        head = {'stage': name, 'step': step}
        return head | record | clock.record() | writers.memory()

      yield step, state, read, record['train/tokens']

  def _rollout(
    self,
    job: Job,
    params: Any,
    batches: data.Batches,
    step: int,
    clock: writers.Clock,
  ) -> tuple[GroupBatch, Record]:
    """Scored groups on the host, and what only the host knows.

    Groups that teach nothing are replaced, if the settings ask for it, by
    those of further rollouts.
    """
    settings = job.config
    key = self.engine.key('sample', job.first_step + step)
    name = f'{job.stage.name}/{step}'

    def rollout(key: jax.Array, name: str) -> tuple[GroupBatch, Record]:
      with clock.phase('data'):
        examples = next(batches)
      return self._groups(job, params, examples, key, name, clock)

    batch, record = rollout(key, name)
    most, used = settings.group.refills, 0
    while used < most and self.engine.anywhere(groups.flat(batch).any())[0]:
      used += 1
      further, counts = rollout(jax.random.fold_in(key, used), f'{name}/{used}')
      # Any process may have the groups that another one lacks.
      whole = groups.refill(parallel.gather(batch), parallel.gather(further))
      own = parallel.own_rows(settings.data.batch_size)
      batch = jax.tree.map(lambda x, own=own: x[own], whole)
      record = {
        name: record.get(name, 0) + counts.get(name, 0)
        for name in record | counts
      }
    for name in record:  # These are means, the others counts.
      if name.startswith(('train/truncated_fraction', 'train/reward_part/')):
        record[name] /= 1 + used
    if most:
      record['train/refills'] = used
    tokens = int(host_mask(batch.responses).sum())
    return batch, record | {'train/tokens': sum(parallel.exchange(tokens))}

  def _groups(
    self,
    job: Job,
    params: Any,
    examples: data.Examples,
    key: jax.Array,
    name: str,
    clock: writers.Clock,
  ) -> tuple[GroupBatch, Record]:
    """Prompts -> scored groups of one rollout, journalled under `name`."""
    settings, engine = job.config, self.engine
    prompts = evaluate.prompts_of(examples)
    given = evaluate.given_of(examples)
    origin = np.broadcast_to(examples.given_origin, given.length.shape)
    sampled = None
    if settings.group.samples:
      with clock.phase('sample'):
        sampled = engine.sample(
          params,
          prompts,
          key,
          settings.sampler,
          settings.group.samples,
          settings.data.max_response,
        )
    responses, origin = groups.join(given, origin, sampled)
    scores = np.zeros(responses.length.shape, np.float32)
    record: Record = {}
    texts, finished = examples.given_texts, given.length > 0
    if sampled is not None:
      own, stopped = engine.decode(sampled, settings.sampler)
      texts = [a + b for a, b in zip(texts, own)]
      finished = np.concatenate([finished, stopped], axis=1)
      stopped = parallel.gather(stopped)
      record['train/truncated_fraction'] = float(1 - stopped.mean())
    if job.objective.advantages is not None:
      with clock.phase('reward'):
        scored = engine.score(
          settings.reward,
          name,
          examples,
          texts,
          responses.length > 0,
          finished,
        )
      scores = scored.rewards
      record |= {
        f'train/reward_failures/{cause}': count
        for cause, count in scored.failures.items()
      }
      if len(scored.parts) > 1:
        present, parts = parallel.gather((responses.length > 0, scored.parts))
        record |= {
          f'train/reward_part/{part}': float(values[present].mean())
          for part, values in parts.items()
        }
    return groups.build(prompts, responses, origin, scores), record

  def _evaluate(
    self, job: Job, params: Any, step: int, *, last: bool
  ) -> Record:
    """Raises Preempted between two batches, if SIGTERM has come."""
    name = job.stage.name
    clock = writers.Clock()

    def check():
      (stops,) = self.engine.anywhere(self.preempted.is_set())
      if stops:
        raise Preempted(
          f'SIGTERM: the evaluation of stage {name} at step {step} is still to be'
          ' done; the same command continues'
        )

    with clock.phase('evaluate'):
      check()
      metrics = evaluate.held_out(
        self.engine,
        params,
        self._base(job, params),
        job.benchmark,
        job.config,
        name=f'{name}/{step}',
        figures=coefficients_file(self.workdir, name),
        before_batch=check,
      )
      if last and job.benchmark.splits and self.config.log.report:
        check()
        self._show(job, params, step)
    return {'stage': name, 'step': step} | metrics | clock.record()

  def _show(self, job: Job, params: Any, step: int) -> None:
    """Writes some groups, as a next step would see them, for the report.

    They are of the first prompts and the same random bits, so that stages can
    be compared. The programs are those of a step and of an evaluation.
    """
    settings, size = job.config, job.config.data.batch_size
    rows = np.arange(size) % len(job.dataset)
    batch, _ = self._groups(
      job,
      params,
      job.dataset.examples(rows[parallel.own_rows(size)]),
      self.engine.key('show', 0),
      f'{job.stage.name}/{step}/show',
      writers.Clock(),
    )
    count = min(report_groups.PROMPTS, size, len(job.dataset))
    first = job.dataset.first(count)
    batch = jax.tree.map(lambda x: x[:count], parallel.gather(batch))
    width = self.config.data.max_response
    logp = evaluate.group_logprobs(self.engine, params, batch, settings, width)
    if jax.process_index() > 0:
      return
    scored = job.objective.advantages is not None
    shown = report_groups.Shown(
      objective=job.stage.objective,
      step=step,
      tau=settings.loss.tau,
      groups=report_groups.groups_of(
        batch,
        first.prompts,
        first.answers,
        logp,
        self.engine.advantages(batch, job.objective, settings.loss)
        if scored
        else None,
        None if settings.loss.rectify_end else np.asarray(batch.end_mask),
        functools.partial(groups.pieces, self.policy.tokenizer),
      ),
    )
    path = self.workdir / 'report' / 'groups' / f'{job.stage.name}.json'
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      write_whole(path, report_groups.text_of(shown))
    except OSError as error:  # What is only shown stops no run.
      logging.warning('%s is not written: %s', path, error)

  def _base(self, job: Job, params: Any) -> Any | None:
    """Parameters of the base policy, or None while it does not exist yet."""
    name = self.config.eval.base
    if not name:
      return self.policy.params
    if name == job.stage.name:
      return params
    if checkpoint.newest(_stage_directory(self.workdir, name)) is None:
      return None
    return self._result_of(name)

  def _result_of(self, name: str) -> Any:
    """Final parameters of a stage; of the model where the name is empty."""
    if not name:
      return self.policy.params
    return result_of(self.policy, self.workdir, name)[0]


def coefficients_file(workdir: pathlib.Path, stage: str) -> pathlib.Path:
  """Where the report finds the weights of a stage's Figure 2."""
  return workdir / 'report' / 'coefficients' / f'{stage}.npz'


def _stage_directory(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / 'checkpoints' / name


def _due(step: int, every: int) -> bool:
  return bool(every) and step % every == 0


def _floats(
  metrics: train_step.Metrics, maxima: train_step.Maxima
) -> dict[str, float]:
  """Waits for the device; a mean over nothing is left out."""
  metrics, maxima = jax.device_get((metrics, maxima))
  means = {k: float(m.value) for k, m in metrics.items() if m.weight > 0}
  # A probability can underflow to 0, and JSON has no word for infinity.
  peaks = {k: min(float(v), FLOAT32_MAX) for k, v in maxima.items()}
  return {f'train/{k}': v for k, v in sorted((means | peaks).items())}


def check_finite(
  stage: str, step: int, record: Record, names: Sequence[str]
) -> None:
  """Raises NonFiniteError where one of the named numbers is not finite."""
  for name in names:
    if not math.isfinite(record[name]):
      raise NonFiniteError(
        f'stage {stage}, step {step}: {name} is {record[name]}; the last'
        ' checkpoint before it stands'
      )
