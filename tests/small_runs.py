"""Settings of short runs."""

import dataclasses
import sys

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


def hearing_signals(command):
  """The command in a process that hears Ctrl-C, which a test run may ignore."""
  first = (
    'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);'
    ' os.execv(sys.argv[1], sys.argv[1:])'
  )
  return [sys.executable, '-c', first, *command]


def with_flags(arguments, given):
  """Arguments of a script without the flags that are given anew, and those.

  `arguments` end with --set, so that `given` may begin with settings.
  """
  named, kept, keep = {x for x in given if x.startswith('--')}, [], True
  for word in arguments:
    if word.startswith('--'):
      keep = word == '--set' or word not in named
    if keep:
      kept.append(word)
  return [*kept, *given]
