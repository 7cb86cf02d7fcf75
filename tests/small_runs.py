"""Settings of short runs."""

import dataclasses

from gft_jax.config import Stage, override


def alone(config, objective, *assignments, **fields):
  """One stage of four prompts a step, from scratch, without evaluation."""
  stage = Stage('arm', '', objective, 3, assignments, **fields)
  config = override(override(config, 'eval.splits=()'), 'eval.base=')
  return dataclasses.replace(config, stages=(stage,))


def demonstrations(config, *stages):
  """The config with stages of demonstrations alone, which compile fast."""
  given = ('group.teachers=0', 'group.samples=0')
  for assignment in ('eval.splits=', 'eval.base=', 'log.report=false'):
    config = override(config, assignment)
  stages = tuple(
    Stage(name, start, 'sft', steps, given) for name, start, steps in stages
  )
  return dataclasses.replace(config, stages=stages)
