"""Text to score, in guarded processes.

`reward.function` names a reward of `answers`, or yours, or a weighted sum of
several: `math + 0.2 * format - 0.1 * length`. Model output is hostile
(`10^10^10` is a legal answer), so with `reward.workers > 0` it is graded in
spawned processes (`workers`) under a deadline that the parent keeps and a limit
on memory; a worker that breaks one is replaced. Whatever goes wrong scores 0 and
is counted by cause; the first exception of a reward of yours goes to stderr:

| cause | meaning |
|---|---|
| parse | the response holds no answer that can be read; normal, not a fault |
| gold | the reference answer cannot be read; the data are at fault |
| invalid | the reward is not a finite number |
| error | the reward raised |
| skipped | a reward of TRL's signature says None: it does not apply |
| timeout | it took longer than `reward.timeout_s`, or no longer listened, and was killed |
| memory | it asked for more than `reward.memory_mb` |
| crash | the process died; by a signal from outside, twice |

Spawned workers import this module and the caller's main module, hence no jax
here, and none at the top level of a script.
"""

import dataclasses
import functools
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gft_jax import answers as answers_lib
from gft_jax.answers import AnswerError, GoldError
from gft_jax.config import Config, RewardConfig, require
from gft_jax.rewards import workers as workers_lib
from gft_jax.rewards.functions import (
  MODEL,
  NOTHING,
  Function,
  ReturnError,
  Wanted,
  described,
  resolve,
)
from gft_jax.rewards.tally import Failed, Failure, counted

# Rewards for which an answer that never stopped is wrong whatever it says.
MUST_STOP = frozenset({'arithmetic'})

# What is shown of an answer, its end.
_SHOWN = 80

_EXIT_MEMORY = 77

_CAUSE_OF_EXIT = {
  None: 'timeout',
  -signal.SIGALRM: 'timeout',
  _EXIT_MEMORY: 'memory',
}


class Part(NamedTuple):
  """One summand of a reward."""

  weight: float
  name: str


class Case(NamedTuple):
  """What a worker grades.

  Attributes:
    prompt: the question.
    answer: the reference.
    response: what the policy wrote.
    stopped: the response ended by itself.
    columns: of the row that the reward takes, as JSON; '' is none.
  """

  prompt: str
  answer: str
  response: str
  stopped: bool
  columns: str = ''


class Problems(NamedTuple):
  """What the answers to B prompts are graded by.

  Attributes:
    prompts: B texts.
    answers: B reference answers.
    columns: B texts of JSON, columns of the rows; empty where none are taken.
  """

  prompts: Sequence[str]
  answers: Sequence[str]
  columns: Sequence[str] = ()


class Scores(NamedTuple):
  """Scores of n answers, or of the answers of groups, [B, G].

  Attributes:
    values: [n] or [B, G] float32, the weighted sum; a part that failed counts
      0, and so does an empty slot.
    parts: name -> as `values`, each part without its weight.
    failed: part -> cause -> failures, only what occurred.
    timed_out: positions whose time ran out, of groups flat, b * G + g. Time is
      the one cause that a second run need not repeat, so a journal of these
      makes it repeat.
    answers: how many were graded.
  """

  values: np.ndarray
  parts: dict[str, np.ndarray]
  failed: Failed
  timed_out: tuple[int, ...]
  answers: int

  @property
  def failures(self) -> dict[str, int]:
    """Cause -> count of parts."""
    return counted(self.failed)


class _Outcome(NamedTuple):
  """What one part comes to; `note` is what it said, in one line."""

  value: float
  cause: str | None
  note: str = ''


def parts_of(function: str) -> tuple[Part, ...]:
  """The summands of `reward.function`.

  Raises:
    ConfigError: it is not set, or not of the form `name`, or
      `2 * name + name - name`.
  """
  require(
    bool(function.strip()),
    'reward.function is not set, and answers are to be graded; name a reward,'
    ' such as math, exact or package.module:function',
  )
  terms = list(re.finditer(_TERM, function))
  require(
    bool(terms)
    and ''.join(term[0] for term in terms) == function
    and all(term[1] for term in terms[1:]),
    f'reward.function={function!r} is neither a name nor a weighted sum of'
    ' names, such as math + 0.2 * format - 0.1 * length'
    + '; a file mine/reward.py is named mine.reward:function'
    * ('/' in function),
  )
  parts = tuple(
    Part(float(f'{sign or "+"}{weight or 1}'), name)
    for sign, weight, name in (term.groups() for term in terms)
  )
  names = [part.name for part in parts]
  require(
    len(set(names)) == len(names),
    f'reward.function={function!r} names a part twice',
  )
  return parts


_TERM = r'\s*([+-])?\s*(?:(\d*\.?\d+(?:e-?\d+)?)\s*\*)?\s*([A-Za-z_][\w.:]*)\s*'


class Grader:
  """Grades answers by one reward; close it or use `with`.

  Attributes:
    asks_model: a part is what a reward model says, so `score` needs `judged`.
  """

  def __init__(self, config: RewardConfig):
    """Raises ConfigError if `config.function` is no reward."""
    self._config = config
    self._parts = parts_of(config.function)
    self.asks_model = any(part.name == MODEL for part in self._parts)
    require(
      bool(config.model) or not self.asks_model,
      f'reward.function={config.function!r} asks a reward model; name its'
      ' folder in reward.model',
    )
    self._functions = _functions(config)
    self._shown: set[str] = set()  # parts whose first exception was printed
    self._workers = (
      workers_lib.Workers(
        config.workers, config.timeout_s, _start_worker, config
      )
      if config.workers
      else None
    )

  def __enter__(self) -> 'Grader':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def close(self) -> None:
    """Ends the workers, also those that are still grading."""
    if self._workers is not None:
      self._workers.close()

  def score(
    self,
    prompts: Sequence[str],
    answers: Sequence[str],
    responses: Sequence[str],
    *,
    columns: Sequence[str] = (),
    finished: Sequence[bool] | np.ndarray | None = None,
    judged: Sequence[float] | np.ndarray | None = None,
    timed_out: Iterable[int] = (),
  ) -> Scores:
    """Grades n answers; equal ones, of equal columns, are graded once.

    Args:
      prompts: n questions.
      answers: n reference answers.
      responses: n texts of the policy, without the stop token.
      columns: n texts of JSON, the columns of the row of each; empty: none.
      finished: [n] bool, the response stopped by itself; None: all did. An
        unfinished one scores 0 under the rewards in `MUST_STOP`, which is no
        failure; other rewards grade what there is.
      judged: [n], what a reward model says: the part named `model`.
      timed_out: positions that a journal says ran out of time; they are
        replayed as such, not graded.

    Raises:
      RuntimeError: workers cannot start.
    """
    if finished is None:
      finished = [True] * len(responses)
    columns = columns or [''] * len(responses)
    cases = [
      Case(prompt, answer, response, bool(stopped), row)
      for prompt, answer, response, stopped, row in zip(
        prompts, answers, responses, finished, columns, strict=True
      )
    ]
    replayed = set(timed_out)
    distinct = list(
      dict.fromkeys(c for i, c in enumerate(cases) if i not in replayed)
    )
    known = dict(zip(distinct, self._grade(distinct)))
    late = self._failed('timeout')
    outcomes = [
      late if i in replayed else known[case] for i, case in enumerate(cases)
    ]
    parts = {
      name: np.array([row[name].value for row in outcomes], np.float32)
      for name in self._functions
    }
    if self.asks_model:
      require(judged is not None, 'nobody asks the reward model')
      parts[MODEL] = np.asarray(judged, np.float32).reshape(len(cases))
    total = np.zeros(len(cases), np.float32)
    for weight, name in self._parts:
      total += np.float32(weight) * parts[name]
    failed = _failures_of(cases, outcomes)
    self._show_first(failed)
    return Scores(
      values=total,
      parts={part.name: parts[part.name] for part in self._parts},
      failed=failed,
      timed_out=tuple(
        i
        for i, row in enumerate(outcomes)
        if any(outcome.cause == 'timeout' for outcome in row.values())
      ),
      answers=len(cases),
    )

  def _show_first(self, failed: Failed) -> None:
    """Prints the first exception of each reward of the user, once."""
    for name, causes in failed.items():
      faults = [causes[c] for c in ('error', 'invalid') if c in causes]
      if faults and ':' in name and name not in self._shown:
        self._shown.add(name)
        sys.stderr.write(
          f'the reward {name} failed: {faults[0].first}\n  That answer counts'
          ' 0. Further failures are counted in reward_failures/, not shown.\n'
        )

  def _failed(self, cause: str) -> dict[str, _Outcome]:
    """What a case that took its worker down comes to: one failure.

    It is charged to the first reward of the user, the likeliest, if there is one.
    """
    row = dict.fromkeys(self._functions, _Outcome(0.0, None))
    charged = sorted(row, key=lambda name: ':' not in name)[:1]
    return row | dict.fromkeys(charged, _Outcome(0.0, cause))

  def _grade(self, cases: list[Case]) -> list[dict[str, _Outcome]]:
    if self._workers is None or not self._functions:
      return [_outcomes(self._functions, case) for case in cases]
    return [self._read(answer) for answer in self._workers.map(cases)]

  def _read(self, answer: object) -> dict[str, _Outcome]:
    """What a worker says of a case, or how it ended."""
    if isinstance(answer, workers_lib.Ended):
      return self._failed(_CAUSE_OF_EXIT.get(answer.exitcode, 'crash'))
    assert isinstance(answer, dict), answer
    return {name: _Outcome(*outcome) for name, outcome in answer.items()}


def _functions(settings: RewardConfig) -> dict[str, Function]:
  """The parts that are functions of text, by name."""
  return {
    part.name: resolve(part.name, settings)
    for part in parts_of(settings.function)
    if part.name != MODEL
  }


def wanted_by(settings: RewardConfig) -> Wanted:
  """The columns of the dataset that a reward takes.

  Raises:
    ConfigError: it is no reward.
  """
  found = NOTHING
  for function in _functions(settings).values():
    found = found.joined(function.wanted)
  return found


def _failures_of(
  cases: Sequence[Case], outcomes: Sequence[dict[str, _Outcome]]
) -> Failed:
  """Part -> cause -> failures, each with its first answer."""
  found: dict[str, dict[str, Failure]] = {}
  for case, row in zip(cases, outcomes):
    for name, (_, cause, note) in row.items():
      if cause:
        causes = found.setdefault(name, {})
        if cause not in causes:
          answer = f'the answer {case.response[-_SHOWN:]!r}'
          causes[cause] = Failure(0, f'{note}, of {answer}' if note else answer)
        causes[cause] = causes[cause]._replace(count=causes[cause].count + 1)
  return found


def _outcomes(
  functions: dict[str, Function], case: Case
) -> dict[str, _Outcome]:
  return {
    name: _outcome(function, case)
    if case.stopped or name not in MUST_STOP
    else _Outcome(0.0, None)
    for name, function in functions.items()
  }


def _outcome(function: Function, case: Case) -> _Outcome:
  """Calls `function`; what goes wrong becomes the cause, never an exception."""
  try:
    # Read anew for each, since a reward may change what it gets.
    columns = json.loads(case.columns) if case.columns else {}
    value = function.grade(case.prompt, case.answer, case.response, columns)
  except AnswerError as error:
    return _Outcome(0.0, 'parse', str(error))
  except GoldError as error:
    return _Outcome(0.0, 'gold', str(error))
  except MemoryError:
    return _Outcome(0.0, 'memory')
  except ReturnError as error:
    return _Outcome(0.0, 'invalid', str(error))
  except KeyboardInterrupt:
    raise
  except BaseException as error:
    # A foreign function may raise anything: sys.exit, math-verify's time-out.
    return _Outcome(0.0, 'error', described(error, function.call))
  if value is None:
    return _Outcome(0.0, 'skipped')
  return _Outcome(value, None)


def _start_worker(
  config: RewardConfig,
) -> Callable[[list], dict[str, _Outcome]]:
  """Runs once in each worker; what it loads is charged to no answer."""
  functions = _functions(config)
  if 'math' in functions:
    # Sympy and the grammar: up to 2 s.
    answers_lib.mathematics('', 'x+1', r'\boxed{1+x}')
  limit = config.memory_mb * 2**20
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  return functools.partial(_work, functions, config.timeout_s)


def _work(
  functions: dict[str, Function], seconds: float, case: list
) -> dict[str, _Outcome]:
  # The parent kills at the deadline. The alarm is for a worker whose parent
  # is dead: its default action ends the process.
  signal.setitimer(signal.ITIMER_REAL, 2 * seconds)
  outcomes = _outcomes(functions, Case(*case))
  signal.setitimer(signal.ITIMER_REAL, 0)
  if any(outcome.cause == 'memory' for outcome in outcomes.values()):
    os._exit(_EXIT_MEMORY)  # what it still holds would fail the next answer
  return outcomes


def evaluation_reward(config: Config) -> RewardConfig:
  """How evaluations grade: one part, so that 1 is right whatever the sum."""
  function = config.eval.reward or parts_of(config.reward.function)[0].name
  return dataclasses.replace(config.reward, function=function)


def score_groups(
  grader: Grader,
  problems: Problems,
  texts: Sequence[Sequence[str]],
  present: np.ndarray,
  finished: np.ndarray,
  *,
  judged: np.ndarray | None = None,
  timed_out: Sequence[int] = (),
) -> Scores:
  """Grades every answer of every group.

  Args:
    grader: of the reward.
    problems: B of them.
    texts: [B][G] responses.
    present: [B, G] bool; an empty slot is not graded.
    finished: [B, G] bool, the answer ended by itself.
    judged: [B, G] float32, what a reward model says, or None.
    timed_out: flat positions that are replayed as time-outs, not graded.
  """
  size = present.shape[1]
  positions = np.flatnonzero(present)
  columns = problems.columns
  scores = grader.score(
    [problems.prompts[i // size] for i in positions],
    [problems.answers[i // size] for i in positions],
    [texts[i // size][i % size] for i in positions],
    columns=[columns[i // size] for i in positions] if columns else (),
    finished=finished.ravel()[positions],
    judged=None if judged is None else judged.ravel()[positions],
    timed_out=np.searchsorted(positions, timed_out).tolist(),
  )

  def spread(values):
    slots = np.zeros(present.shape, np.float32)
    slots.ravel()[positions] = values
    return slots

  return scores._replace(
    values=spread(scores.values),
    parts={name: spread(values) for name, values in scores.parts.items()},
    timed_out=tuple(positions[list(scores.timed_out)].tolist()),
  )
