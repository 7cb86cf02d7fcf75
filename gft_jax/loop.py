"""train(config, workdir): the story of a run.

A run is a tree of stages. A stage is a generator of steps,

  prompts -> sampled answers -> scores -> groups -> update,

and one consumer that writes, evaluates and saves what is due. Step n is
dispatched before the metrics of n - 1 are read.

Steps count from the root of the tree, so sibling stages see the same prompts
and the same random bits. With the data position in the checkpoint, a resumed
run repeats the uninterrupted one bit for bit.
"""

import contextlib
import dataclasses
import pathlib
import time

import jax

from gft_jax.config import Config
from gft_jax.engine import open_engine
from gft_jax.parallel import processes
from gft_jax.parallel.mesh import warn_of_idle_devices
from gft_jax.plan import (
  Job,
  datasets_of,
  fingerprints,
  plan_stages,
  rewards_of,
  sizes_of,
  warn_of_losses,
)
from gft_jax.policy import fingerprint_of, load_policy
from gft_jax.report.page import write_report
from gft_jax.rewards.tally import RewardError
from gft_jax.run import checkpoint
from gft_jax.run.profiling import Profiler
from gft_jax.run.progress import Budget, Due, Evaluation, Position, what_is_due
from gft_jax.run.recorder import Recorder
from gft_jax.run.signals import Preempted, stop_requests
from gft_jax.run.workdir import (
  check_data,
  check_workdir,
  claim,
  local_folder,
  stage_directory,
)
from gft_jax.run.writers import Writer, check_writers, make_writer
from gft_jax.stage import (
  Begun,
  Run,
  Step,
  restore,
  save,
  training_steps,
  void_later_stages,
)
from gft_jax.stage_evaluation import evaluate_or_stop, evaluate_stage


def train(config: Config, workdir: str | pathlib.Path) -> dict[str, Evaluation]:
  """Runs, or resumes, every stage.

  Afterwards `workdir` holds config.json, data.json, metrics.jsonl,
  checkpoints/ and report/. A finished stage is not run again; one that has more
  steps now goes on, if it is the last.

  Returns:
    The last evaluation of each stage, by stage.

  Raises:
    ConfigError: a setting that cannot work, a workdir begun under another
      config, on other data, or in use by another run. Nothing has been written
      then.
    NonFiniteError: the last good checkpoint stands.
    RewardError: a reward of the user failed for every answer of a step or of
      an evaluation, by its own fault; the last checkpoint stands.
    Preempted: SIGTERM or Ctrl-C came; the step in progress is done and saved. An
      evaluation in progress is done when the same command continues.
    checkpoint.SaveError: the disk is full; the last checkpoint stands.
    processes.LostProcessError: another process of the run is gone.
  """
  started, workdir = time.time(), local_folder(workdir)
  check_workdir(workdir, config)
  first = jax.process_index() == 0
  if first:
    check_writers(config.log)
  policy = load_policy(config)
  jobs = plan_stages(config, policy)
  with processes.connected(), contextlib.ExitStack() as stack:
    hold, closing = stack.enter_context, contextlib.closing
    timeouts = workdir / 'timeouts.jsonl'
    engine = hold(open_engine(config, policy, rewards_of(jobs), timeouts))
    hold(claim(workdir, config))
    check_data(workdir, [*fingerprints(jobs), *fingerprint_of(config)])
    warn_of_idle_devices(config.mesh, *sizes_of(config))
    warn_of_losses(datasets_of(jobs))
    stop_request = hold(stop_requests())
    writer = make_writer(workdir, config.log) if first else Writer()
    hold(closing(writer))
    saver = hold(checkpoint.Saver())
    profiler = Profiler(workdir / 'profile', config.log.profile)
    hold(closing(profiler))
    run = Run(
      config,
      workdir,
      policy,
      engine,
      Recorder(writer, workdir, started),
      saver,
      profiler,
      stop_request,
    )
    results = {job.stage.name: run_stage(run, job) for job in jobs}
    if config.log.report and first:
      write_report(workdir)
    processes.barrier()  # Nobody leaves before the report is there.
  return results


def run_stage(run: Run, job: Job) -> Evaluation:
  """Runs or resumes one stage; returns its last evaluation."""
  begun = begin_stage(run, job)
  evaluation, budget = begun.position.evaluation, Budget(begun.position.spent)
  if begun.is_over(job.stage):
    return evaluation
  for step in training_steps(run, job, begun):
    run.recorder.defer(step.read)
    budget.charge(step.tokens)
    due, stop = agree_on_what_is_due(run, job, step, budget)
    unfinished = ''
    if due.evaluate or due.save:
      run.recorder.flush()
      budget.charge()
    if due.evaluate:
      evaluation, unfinished, stop = evaluate_or_stop(
        run, job, step.state.params, step.number, due.last, evaluation
      )
    if due.save or stop:
      measured = due.evaluate and not unfinished
      position = Position(
        begun.batches.get_state(),
        run.recorder.vouch(),
        evaluation,
        budget.spent,
        finished=due.last and not unfinished,
        unfinished_evaluation=unfinished,
        score=job.score_of(evaluation) if measured else None,
      )
      save(run, job, step, position, wait=due.last or bool(stop))
    if stop:
      raise stopped_by(stop, job, step)
    if due.last:
      break
    budget.restart_clock()
  run.recorder.end_stage()
  return evaluation


def stopped_by(
  stop: int | RewardError, job: Job, step: Step
) -> Preempted | RewardError:
  """Why a stage ends after a step that is saved: a signal, or its reward."""
  if isinstance(stop, RewardError):
    return stop
  return Preempted(
    stop,
    f'stage {job.stage.name} is saved at step {step.number}; the same command'
    ' continues',
  )


def begin_stage(run: Run, job: Job) -> Begun:
  """Restores a stage, and does the evaluations that come before its steps."""
  begun, stage = restore(run, job), job.stage
  if begun.is_over(stage):
    return begun
  void_later_stages(run, stage, begun.step)
  run.recorder.begin_stage(stage.name, stage.steps, begun.step)
  loaded = not stage.start and bool(run.config.model.path)
  if loaded and not begun.step and job.config.eval.before:
    evaluate_stage(run, job, begun.state.params, 0, last=False)
  if begun.position.unfinished_evaluation:
    return finish_evaluation(run, job, begun)
  return begun


def finish_evaluation(run: Run, job: Job, begun: Begun) -> Begun:
  """Does the evaluation in which the run was stopped."""
  last = begun.position.unfinished_evaluation == 'last'
  evaluation = evaluate_stage(
    run, job, begun.state.params, begun.step, last=last
  )
  position = dataclasses.replace(
    begun.position,
    metrics_bytes=run.recorder.vouch(),
    evaluation=evaluation,
    finished=last,
    unfinished_evaluation='',
    score=job.score_of(evaluation),
  )
  directory = stage_directory(run.workdir, job.stage.name)
  with run.recorder.unreported_times.phase('save'):
    checkpoint.amend(directory, begun.step, position.to_json())
  if last:
    run.recorder.end_stage()
  return begun._replace(position=position)


def agree_on_what_is_due(
  run: Run, job: Job, step: Step, budget: Budget
) -> tuple[Due, int]:
  """What is due in every process, and the signal that asks any to stop, or 0."""
  budget_reached, stop = processes.largest(
    budget.spent.reaches(job.stage), run.stop_request.number
  )
  due = what_is_due(
    step.number,
    job.stage.steps,
    evaluate_every=job.config.eval.every,
    save_every=job.config.checkpoint.every,
    save_evaluated=bool(job.config.checkpoint.best),
    budget_reached=bool(budget_reached),
    stop_requested=bool(stop),
  )
  return due, stop
