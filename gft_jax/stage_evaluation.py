"""Evaluations of a stage: held-out numbers, and groups for the report."""

import logging
from typing import NamedTuple

import jax
import numpy as np

from gft_jax.collect import Collector
from gft_jax.evaluation.held_out import HeldOutEvaluation, group_logprobs
from gft_jax.parallel import processes
from gft_jax.plan import Job
from gft_jax.report import groups as report_groups
from gft_jax.rewards.tally import RewardError
from gft_jax.rollout.texts import token_pieces
from gft_jax.run import checkpoint
from gft_jax.run.clock import Clock
from gft_jax.run.files import write_whole
from gft_jax.run.progress import Evaluation
from gft_jax.run.signals import Preempted
from gft_jax.run.workdir import coefficients_file, stage_directory
from gft_jax.stage import Run
from gft_jax.types import Params


class Evaluated(NamedTuple):
  """What became of an evaluation.

  Attributes:
    evaluation: its numbers, or those of the evaluation before.
    unfinished: as Position.unfinished_evaluation.
    stop: the signal that asks to stop, or 0; or a reward that gives nothing.
  """

  evaluation: Evaluation
  unfinished: str
  stop: int | RewardError


def evaluate_or_stop(
  run: Run, job: Job, params: Params, step: int, last: bool, before: Evaluation
) -> Evaluated:
  """Evaluates a step, unless a signal asks to stop before it is done.

  An evaluation may take longer than the notice that is given. Where its reward
  fails for every answer, the step is still to be saved.
  """
  try:
    evaluation = evaluate_stage(run, job, params, step, last=last)
  except Preempted as stopped:
    return Evaluated(before, 'last' if last else 'step', stopped.number)
  except RewardError as error:
    return Evaluated(before, 'last' if last else 'step', error)
  return Evaluated(evaluation, '', stop_signal(run))


def evaluate_stage(
  run: Run, job: Job, params: Params, step: int, *, last: bool
) -> Evaluation:
  """Evaluates a step of a stage and writes the record.

  Raises:
    Preempted: a signal asks to stop; it is looked for between two batches.
  """
  stage, clock = job.stage.name, Clock()

  def check() -> None:
    number = stop_signal(run)
    if number:
      raise Preempted(
        number,
        f'the evaluation of stage {stage} at step {step} is still to be done; the'
        ' same command continues',
      )

  with clock.phase('evaluate'):
    check()
    evaluation = HeldOutEvaluation(
      run.engine, params, job.config, f'{stage}/{step}', check
    ).measure(
      job.held_out,
      base_of(run, job, params),
      figures=coefficients_file(run.workdir, stage),
    )
    if last and job.held_out.splits and run.config.log.report:
      check()
      write_groups(run, job, params, step)
  head = {'stage': stage, 'step': step}
  run.recorder.write(head | evaluation | clock.record())
  return evaluation


def stop_signal(run: Run) -> int:
  """The signal that asks any process to stop, or 0; every process must ask."""
  return processes.largest(run.stop_request.number)[0]


def base_of(run: Run, job: Job, params: Params) -> Params | None:
  """Parameters of the base policy, or None while it does not exist yet."""
  name = run.config.eval.base
  if name == job.stage.name:
    return params
  if name and checkpoint.newest(stage_directory(run.workdir, name)) is None:
    return None
  return run.result_of(name)


def write_groups(run: Run, job: Job, params: Params, step: int) -> None:
  """Writes some groups, as a next step would see them, for the report.

  They are of the first prompts and the same random bits, so that stages can be
  compared. The programs are those of a step and of an evaluation.
  """
  settings, size = job.config, job.config.data.batch_size
  rows = np.arange(size) % len(job.dataset)
  collector = Collector(run.engine, settings, job.objective, Clock())
  batch, _ = collector.groups_of(
    params,
    job.dataset.examples(rows[processes.own_rows(size)]),
    run.engine.key('show', 0),
    f'{job.stage.name}/{step}/show',
  )
  count = min(report_groups.PROMPTS, size, len(job.dataset))
  batch = jax.tree.map(lambda x: x[:count], processes.gather(batch))
  width = run.config.data.max_response
  logp = group_logprobs(run.engine, params, batch, settings, width)
  if jax.process_index() > 0:
    return
  first = job.dataset.first(count)
  advantages = None
  if job.objective.is_scored:
    advantages = run.engine.advantages(batch, job.objective, settings.loss)
  samples = report_groups.GroupSamples(
    objective=job.stage.objective,
    step=step,
    tau=settings.loss.tau,
    groups=report_groups.groups_of(
      batch,
      first.prompts,
      first.answers,
      logp,
      advantages,
      None if settings.loss.rectify_end else np.asarray(batch.end_mask),
      lambda tokens: token_pieces(run.policy.tokenizer, tokens),
    ),
  )
  path = run.workdir / 'report' / 'groups' / f'{job.stage.name}.json'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, report_groups.text_of(samples))
  except OSError as error:  # What is only shown stops no run.
    logging.warning('%s is not written: %s', path, error)
