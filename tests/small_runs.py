"""Settings of short runs."""

import dataclasses

from gft_jax.config import Stage, override


def alone(config, objective, *assignments, **fields):
  """One stage of four prompts a step, from scratch, without evaluation."""
  stage = Stage('arm', '', objective, 3, assignments, **fields)
  config = override(override(config, 'eval.splits=()'), 'eval.base=')
  return dataclasses.replace(config, stages=(stage,))
