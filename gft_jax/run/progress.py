"""Where a stage stands: what is saved of it, what it has spent, what is due."""

import dataclasses
import time
from typing import NamedTuple

from gft_jax.config import ConfigError, Stage
from gft_jax.types import Json

Evaluation = dict[str, float]

# Of a checkpoint's position. 1 is that of commits up to bf59033.
VERSION = 2


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
    """Whether a limit of the stage is reached; a limit of 0 is none."""
    return 0 < stage.tokens <= self.tokens or 0 < stage.seconds <= self.seconds


class Budget:
  """Adds up what a stage spends; its clock starts with the second step."""

  def __init__(self, spent: Spent):
    self.spent = spent
    self._running_since: float | None = None

  def restart_clock(self) -> None:
    """What has passed since the last charge costs nothing."""
    self._running_since = time.perf_counter()

  def charge(self, tokens: int = 0) -> None:
    """Charges these tokens, and the seconds since the clock was read last."""
    now = time.perf_counter()
    since = self._running_since
    seconds = now - since if since is not None else 0.0
    self._running_since = now
    self.spent = Spent(self.spent.tokens + tokens, self.spent.seconds + seconds)


@dataclasses.dataclass(frozen=True)
class Position:
  """What a checkpoint says of a stage beside its arrays.

  Attributes:
    data: position of the data iterator, in JSON types.
    metrics_bytes: how much of metrics.jsonl the checkpoint vouches for.
    evaluation: the last evaluation of the stage; empty if there is none.
    spent: of its budget.
    finished: nothing of the stage is left to do.
    unfinished_evaluation: '' for none, else the evaluation in which the run was
      stopped: 'step', or 'last' for that at the end of the stage.
    score: number of the evaluation at this step that checkpoint.best names.
    version: of this format.
  """

  data: Json
  metrics_bytes: int = 0
  evaluation: Evaluation = dataclasses.field(default_factory=dict)
  spent: Spent = Spent()
  finished: bool = False
  unfinished_evaluation: str = ''
  score: float | None = None
  version: int = VERSION

  def to_json(self) -> dict[str, object]:
    return dataclasses.asdict(self) | {'spent': self.spent._asdict()}

  @classmethod
  def from_json(cls, values: Json) -> 'Position':
    """Reads a position of this version, or of an earlier one.

    Raises:
      ConfigError: a later version has written it.
    """
    fields = dict(values)
    version = fields.pop('version', 1)
    if version not in (1, VERSION):
      raise ConfigError(
        f'the checkpoint has a position of version {version}, written by a later'
        f' gft_jax; this one reads versions up to {VERSION}'
      )
    if version == 1:
      fields['unfinished_evaluation'] = fields.pop('owes', '')
    return cls(**fields | {'spent': Spent(**fields['spent'])})


class Due(NamedTuple):
  """What is to be done after a step.

  Attributes:
    evaluate: an evaluation.
    save: a checkpoint.
    last: the stage is over then.
  """

  evaluate: bool
  save: bool
  last: bool


def what_is_due(
  step: int,
  steps: int,
  *,
  evaluate_every: int,
  save_every: int,
  save_evaluated: bool = False,
  budget_reached: bool = False,
  stop_requested: bool = False,
) -> Due:
  """What is due after `step` of `steps`.

  Args:
    step: of the stage, from 1.
    steps: of the whole stage.
    evaluate_every: eval.every; 0 evaluates after the last step alone.
    save_every: checkpoint.every.
    save_evaluated: each evaluated step is saved (checkpoint.best).
    budget_reached: the stage has spent its tokens or seconds.
    stop_requested: SIGTERM or Ctrl-C has come.
  """
  last = step == steps or budget_reached
  evaluate = last or _divides(evaluate_every, step)
  save = (
    last
    or stop_requested
    or _divides(save_every, step)
    or (evaluate and save_evaluated)
  )
  return Due(evaluate, save, last)


def _divides(every: int, step: int) -> bool:
  return bool(every) and step % every == 0
