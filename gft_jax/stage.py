"""One stage at work: the generator of its steps, and what is saved of them."""

import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax.training.train_state import TrainState

from gft_jax.collect import Collector
from gft_jax.config import Config, Stage
from gft_jax.data.dataset import Batches
from gft_jax.engine import Engine
from gft_jax.plan import Job
from gft_jax.policy import Policy, restore_stage
from gft_jax.rewards.tally import Tally
from gft_jax.run import checkpoint
from gft_jax.run.clock import Clock, memory
from gft_jax.run.profiling import Profiler
from gft_jax.run.progress import Position
from gft_jax.run.recorder import Recorder
from gft_jax.run.signals import StopRequest
from gft_jax.run.workdir import stage_directory
from gft_jax.training.metrics import Maxima, Metrics, check_finite, floats_of
from gft_jax.training.optimizer import make_schedule
from gft_jax.types import Numbers, Params, Record


class Run(NamedTuple):
  """What the stages of a run share.

  Attributes:
    config: of the whole run.
    workdir: where it lives.
    policy: what the first stage starts from.
    engine: the compiled programs.
    recorder: of metrics.
    saver: of checkpoints.
    profiler: of the steps that log.profile names.
    stop_request: what SIGTERM and Ctrl-C have asked of this process.
  """

  config: Config
  workdir: pathlib.Path
  policy: Policy
  engine: Engine
  recorder: Recorder
  saver: checkpoint.Saver
  profiler: Profiler
  stop_request: StopRequest

  def result_of(self, stage: str) -> Params:
    """Final parameters of a stage; of the model where the name is empty."""
    if not stage:
      return self.policy.params
    return restore_stage(self.policy, self.workdir, stage)[0]


class Begun(NamedTuple):
  """A stage that is about to train.

  Attributes:
    step: steps that are done.
    state: of training, on the mesh; the first step takes it.
    reference: parameters that the stage started from, where its KL needs them.
    batches: of prompts, at the position of the next step.
    position: of the newest checkpoint, or of the beginning.
  """

  step: int
  state: TrainState
  reference: Params | None
  batches: Batches
  position: Position

  def is_over(self, stage: Stage) -> bool:
    """Whether nothing is left; a finished stage may have been given more."""
    done = self.step >= stage.steps or self.position.spent.reaches(stage)
    return self.position.finished and done


class Step(NamedTuple):
  """A step that is dispatched.

  Attributes:
    number: of the stage, from 1.
    state: after it; the next step takes it.
    read: waits for the metrics and gives the record of the step.
    tokens: response tokens that have trained, over all processes.
  """

  number: int
  state: TrainState
  read: Callable[[], Record]
  tokens: int


def restore(run: Run, job: Job) -> Begun:
  """The stage at its newest checkpoint, or at its beginning."""
  batches = job.dataset.batches(
    job.config.data.batch_size,
    run.config.seed + job.first_step,
    jax.process_index(),
    jax.process_count(),
  )
  start = run.result_of(job.stage.start)
  state = run.engine.fresh_state(start, job.config.optimizer, job.total_updates)
  reference = run.engine.copy(start) if job.config.loss.kl_weight else None
  directory = stage_directory(run.workdir, job.stage.name)
  restored = checkpoint.restore(directory, state)
  if restored is None:
    position = Position(batches.get_state())
    return Begun(0, state, reference, batches, position)
  position = Position.from_json(restored.position)
  batches.set_state(position.data)
  run.recorder.valid_bytes = position.metrics_bytes
  return Begun(restored.step, restored.state, reference, batches, position)


def training_steps(run: Run, job: Job, begun: Begun) -> Iterator[Step]:
  """Dispatches the steps that are left, one by one."""
  settings, stage = job.config, job.stage.name
  schedule = make_schedule(settings.optimizer, job.total_updates)
  state = begun.state
  for number in range(begun.step + 1, job.stage.steps + 1):
    clock = Clock()
    with run.profiler.step(stage, number):
      collector = Collector(run.engine, settings, job.objective, clock)
      batch, record = collector.collect(
        state.params,
        begun.batches,
        run.engine.key('sample', job.first_step + number),
        f'{stage}/{number}',
      )
      updates = (number - 1) * settings.optimizer.mini_batches
      record['train/learning_rate'] = float(np.asarray(schedule(updates)))
      with clock.phase('update'):
        state, metrics, maxima = run.engine.update(
          state, batch, begun.reference, job.objective, settings
        )
        waits = settings.group.samples or jax.process_count() > 1
        if waits or run.profiler.traces(stage, number):
          # The next rollout needs these parameters: nothing is lost by waiting,
          # and the seconds are charged to the phase that spends them.
          # Processes talk after each step, and never two of their programs at
          # one time.
          jax.block_until_ready(metrics)

    read = _reader(stage, number, record, clock, metrics, maxima)
    read = _watched(read, collector.tally, run.engine.told)
    yield Step(number, state, read, int(record['train/tokens']))


def _reader(
  stage: str,
  step: int,
  record: Numbers,
  clock: Clock,
  metrics: Metrics,
  maxima: Maxima,
) -> Callable[[], Record]:
  """Waits for the metrics of a step when it is called; see Step.read."""

  def read() -> Record:
    with clock.phase('update'):
      numbers = record | floats_of(metrics, maxima)
    check_finite(stage, step, numbers, ('train/loss', 'train/grad_norm'))
    head = {'stage': stage, 'step': step}
    return head | numbers | clock.record() | memory()

  return read


def _watched(
  read: Callable[[], Record], tally: Tally, told: set[str]
) -> Callable[[], Record]:
  """`read`, with a warning, once a stage, where the gradient is exactly 0."""

  def watched() -> Record:
    record = read()
    stage, step = record['stage'], record['step']
    about = f'the gradient of {stage}'
    if record['train/grad_norm'] == 0 and about not in told:
      told.add(about)
      logging.warning(
        'stage %s, step %d: the gradient is exactly 0, so the step teaches'
        ' nothing: %s',
        *(stage, step, why_no_gradient(record, tally)),
      )
    return record

  return watched


def why_no_gradient(record: Numbers, tally: Tally) -> str:
  """Why the gradient of a step is exactly 0, from what the step measured."""
  if not record['train/tokens']:
    return 'no token trains, for the groups hold no answers'
  if 'train/zero_variance_groups' not in record:
    return 'no token has a loss with a slope'
  if record['train/zero_variance_groups'] < 1:
    return 'rewards differ, but no token has a loss with a slope'
  why = (
    'in every group all rewards are equal (their mean is'
    f' {record["train/reward"]:g}), so no answer has an advantage'
  )
  for part, failures in tally.without_value().items():
    return f'{why}; the reward {part} failed for all answers ({failures})'
  if record.get('train/truncated_fraction') == 1:
    why += '; no sampled answer ended within data.max_response tokens'
  return why


def save(
  run: Run, job: Job, step: Step, position: Position, *, wait: bool
) -> None:
  """Begins a checkpoint of a step; with `wait` it is on disk then."""
  with run.recorder.unreported_times.phase('save'):
    run.saver.save(
      stage_directory(run.workdir, job.stage.name),
      step.number,
      step.state,
      position.to_json(),
      keep=job.config.checkpoint.keep,
      keep_best=bool(job.config.checkpoint.best),
    )
    if wait:
      run.saver.wait()


def void_later_stages(run: Run, stage: Stage, done: int) -> None:
  """Removes what later stages saved, if this one is not whole after all.

  That happens where its last checkpoint was damaged. Metrics are cut back to
  what is done, and a later checkpoint vouches for more than that.
  """
  stages = run.config.stages
  for later in stages[stages.index(stage) + 1 :]:
    directory = stage_directory(run.workdir, later.name)
    if jax.process_index() == 0 and directory.exists():
      logging.warning(
        'stage %s goes on from step %d, so %s begins anew',
        *(stage.name, done, later.name),
      )
      shutil.rmtree(directory)
