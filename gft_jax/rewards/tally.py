"""What went wrong in grading, by part and cause, and what it means.

No jax here: it stands beside the grader.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from gft_jax.config import ConfigError

# Causes that are the fault of the reward, not of an answer.
FAULTS = frozenset({'error', 'invalid', 'crash', 'memory'})


class Failure(NamedTuple):
  """Failures of one part for one cause.

  Attributes:
    count: answers.
    first: the first of them in one line.
  """

  count: int
  first: str


# Part -> cause -> failures.
Failed: TypeAlias = Mapping[str, Mapping[str, Failure]]


class RewardError(ConfigError):
  """A reward of the user gives nothing; the message is one line."""


def joined(parts: Iterable[Failed]) -> dict[str, dict[str, Failure]]:
  """The failures of several batches or processes."""
  found: dict[str, dict[str, Failure]] = {}
  for failed in parts:
    for part, causes in failed.items():
      known = found.setdefault(part, {})
      for cause, (count, first) in causes.items():
        before = known.get(cause, Failure(0, first))
        known[cause] = Failure(before.count + count, before.first)
  return found


def counted(failed: Failed) -> dict[str, int]:
  """Cause -> count of parts."""
  found: dict[str, int] = {}
  for causes in failed.values():
    for cause, failure in causes.items():
      found[cause] = found.get(cause, 0) + failure.count
  return found


class Tally:
  """The failures of a step, or of an evaluation.

  Attributes:
    answers: graded answers.
    failed: their failures.
  """

  def __init__(self) -> None:
    self.answers = 0
    self.failed: Failed = {}

  def add(self, answers: int, failed: Failed) -> None:
    """Adds a batch of answers."""
    self.answers += answers
    self.failed = joined([self.failed, failed])

  @property
  def counts(self) -> dict[str, int]:
    """Cause -> count of parts."""
    return counted(self.failed)

  def without_value(self) -> dict[str, str]:
    """Part -> why, of the parts that failed for every answer."""
    found = {}
    for part, causes in self.failed.items():
      if sum(failure.count for failure in causes.values()) == self.answers > 0:
        counts = ', '.join(f'{f.count} {cause}' for cause, f in causes.items())
        first = next(iter(causes.values())).first
        found[part] = f'{counts}; the first: {first}' if first else counts
    return found

  def check(self, where: str, told: set[str]) -> None:
    """Refuses a reward of the user that fails for every answer by its own fault.

    Where every answer cannot be read, or is late, a warning says so: a model
    that has not learned its format does that.

    Args:
      where: a step or an evaluation, for the message.
      told: what has been warned of; this adds to it.

    Raises:
      RewardError: the line has the reward, the exception and its place.
    """
    for part, why in self.without_value().items():
      sentence = (
        f'the reward {part} failed for all {self.answers} answers of {where}'
        f' ({why})'
      )
      if ':' in part and self.failed[part].keys() <= FAULTS:
        raise RewardError(f'{sentence}; correct {part} and repeat the command')
      if part not in told:
        told.add(part)
        logging.warning('%s; all of them count 0', sentence)
