r"""Text to score, in a guarded process pool.

A reward is a function `(prompt, answer, response) -> float` of three texts:
the question, the reference answer and what the policy wrote, without its stop
token. Model output is data: it is parsed, never executed. It is still hostile
(`10^10^10` is a legal answer), so with `reward.workers > 0` it is graded in
spawned processes under a deadline that the parent keeps and a limit on
memory; a worker that breaks one is replaced. Whatever goes wrong scores 0 and
is counted by cause:

| cause | meaning |
|---|---|
| parse | the response holds no answer that can be read; normal, not a fault |
| gold | the reference answer cannot be read; the data are at fault |
| invalid | the reward is not a finite number |
| error | the reward raised |
| timeout | it took longer than `reward.timeout_s` and was killed |
| memory | it asked for more than `reward.memory_mb` |
| crash | the process died |

Spawned workers import this module and the caller's main module, hence no jax
here, and none at the top level of a script.
"""

import contextlib
import importlib
import json
import logging
import multiprocessing
import numbers
import os
import pathlib
import re
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pebble

from gft_jax import config as config_lib

Reward = Callable[[str, str, str], float]
Case = tuple[str, str, str]

# The longest text that the mathematics parser sees: its regular expressions
# are superlinear, and an answer stands at the end.
MAX_CHARACTERS = 8192

_LARGEST = float(np.finfo(np.float32).max)
_EXIT_MEMORY = 77
_CAUSE_OF_EXIT = {_EXIT_MEMORY: 'memory', -signal.SIGALRM: 'timeout'}


class AnswerError(ValueError):
  """The response holds no answer that can be read (cause 'parse')."""


class GoldError(ValueError):
  """The reference answer cannot be read (cause 'gold')."""


class Scores(NamedTuple):
  """What `Grader.score` gives for n answers.

  Attributes:
    values: [n] float32, 0 where grading failed.
    failures: cause -> count, only the causes that occurred.
    timed_out: positions whose time ran out. Time is the one cause that a
      second run need not repeat, so a journal of these makes it repeat.
  """

  values: np.ndarray
  failures: dict[str, int]
  timed_out: tuple[int, ...]


class _Outcome(NamedTuple):
  value: float
  cause: str | None


def arithmetic(prompt: str, answer: str, response: str) -> float:
  """1 if the integer after the last '#' of `response` is `answer`, else 0."""
  del prompt
  return float(
    _integer_after_hash(f'#{answer}', GoldError)
    == _integer_after_hash(response, AnswerError)
  )


def mathematics(prompt: str, answer: str, response: str) -> float:
  r"""1 if `response` ends in an expression equal to `answer`, else 0.

  math-verify decides equality, so 1/2, 0.5 and \frac{1}{2} agree. A bare
  reference answer is read as LaTeX. A response without \boxed but with the
  '####' of GSM8K is read from that mark to the end of its line; of any other,
  the last `MAX_CHARACTERS` characters.

  Raises:
    AnswerError, GoldError: math-verify found no expression.
    Exception: whatever its parsers raise; `raise_on_error` keeps them loud,
      and its own time-outs, which swallow, are off: the pool has the deadline.
  """
  del prompt
  import math_verify  # half a second that other rewards need not pay

  # It warns in every process that its time-outs are off, as they should be.
  logging.getLogger('math_verify').setLevel(logging.ERROR)
  gold = math_verify.parse(
    _as_latex(_marked(answer)), parsing_timeout=None, raise_on_error=True
  )
  if not gold:
    raise GoldError(f'no expression in the reference answer {answer!r}')
  found = math_verify.parse(
    _marked(response[-MAX_CHARACTERS:]),
    parsing_timeout=None,
    raise_on_error=True,
  )
  if not found:
    raise AnswerError('no expression in the response')
  return float(
    math_verify.verify(gold, found, timeout_seconds=None, raise_on_error=True)
  )


def choice(prompt: str, answer: str, response: str) -> float:
  r"""1 if `response` chooses the letter `answer` of A to J, else 0.

  What counts is the last \boxed{X}; without one the last 'answer is X'; without
  that the last letter before a bracket or at the end.

  Raises:
    AnswerError, GoldError: no letter.
  """
  del prompt
  if not re.fullmatch('[A-J]', answer.strip()):
    raise GoldError(f'the reference answer {answer!r} is not a letter')
  for pattern in _CHOICES:
    found = re.findall(pattern, response[-MAX_CHARACTERS:])
    if found:
      return float(found[-1] == answer.strip())
  raise AnswerError('no letter in the response')


# The third also takes the letter of '(B) 4' and of a response that ends in one.
_CHOICES = (
  r'\\boxed\{\s*(?:\\text\{)?\s*\(?([A-J])\b',
  r'[Aa]nswer(?: is|:)[\s:*$]*\(?([A-J])\b',
  r'(?:^|[\s(])([A-J])(?:\)|\.?\s*$)',
)


def extract(function: str, response: str) -> str | None:
  r"""The answer that a response gives, as text in one spelling, or None.

  Two answers are the same vote of maj@k where these texts are equal: spaces,
  \left, \text{...}, the currency, the commas of thousands and a decimal part of
  zeros do not matter, but 1/2 and 0.5 are two.

  Args:
    function: a `reward.function`. Of 'arithmetic' it is the integer and of
      'choice' the letter that they grade; of any other the last \boxed{...},
      without one what follows '####', without that the last number.
    response: the text.
  """
  response = response[-MAX_CHARACTERS:]
  if function == 'arithmetic':
    try:
      return str(_integer_after_hash(response, AnswerError))
    except AnswerError:
      return None
  if function == 'choice':
    found = (re.findall(pattern, response) for pattern in _CHOICES)
    return next((letters[-1] for letters in found if letters), None)
  _, box, rest = response.rpartition(r'\boxed{')
  if box:
    return _one_spelling(_before_closing_brace(rest))
  if '####' in response:
    return _one_spelling(_marked(response))
  numbers = re.findall(_NUMBER, response)
  return _one_spelling(numbers[-1]) if numbers else None


BUILT_IN: dict[str, Reward] = {
  'arithmetic': arithmetic,
  'choice': choice,
  'math': mathematics,
}

# Rewards for which an answer that never stopped is wrong whatever it says.
MUST_STOP = frozenset({'arithmetic'})


class Grader:
  """Grades answers with one reward function; close it or use `with`."""

  def __init__(self, config: config_lib.RewardConfig):
    """Raises ConfigError if `config.function` names no function."""
    self._config = config
    self._function = resolve(config.function)
    self._pool = self._new_pool() if config.workers else None

  def __enter__(self) -> 'Grader':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def close(self) -> None:
    """Ends the workers, also those that are still grading."""
    if self._pool is not None:
      self._pool.stop()
      self._pool.join()

  def score(
    self,
    prompts: Sequence[str],
    answers: Sequence[str],
    responses: Sequence[str],
    *,
    finished: Sequence[bool] | None = None,
    timed_out: Iterable[int] = (),
  ) -> Scores:
    """Grades n answers; equal triples of texts are graded once.

    Args:
      prompts: n questions.
      answers: n reference answers.
      responses: n texts of the policy, without the stop token.
      finished: [n] bool, the response stopped by itself; None: all did. An
        unfinished one scores 0 under the rewards in `MUST_STOP`, which is no
        failure; other rewards grade what there is.
      timed_out: positions that a journal says ran out of time; they are
        replayed as such, not graded.

    Raises:
      RuntimeError: workers cannot start, or died twice between answers.
    """
    cases = list(zip(prompts, answers, responses, strict=True))
    replayed = set(timed_out)
    stopped = [True] * len(cases) if finished is None else finished
    must_stop = self._config.function in MUST_STOP

    def needs_grading(position: int) -> bool:
      return position not in replayed and bool(
        stopped[position] or not must_stop
      )

    graded = [i for i in range(len(cases)) if needs_grading(i)]
    distinct = list(dict.fromkeys(cases[i] for i in graded))
    outcome_of = dict(zip(distinct, self._grade(distinct)))
    outcomes = [_Outcome(0.0, None)] * len(cases)
    for i in graded:
      outcomes[i] = outcome_of[cases[i]]
    for i in replayed:
      outcomes[i] = _Outcome(0.0, 'timeout')
    return Scores(
      values=np.array([outcome.value for outcome in outcomes], np.float32),
      failures=dict(Counter(o.cause for o in outcomes if o.cause)),
      timed_out=tuple(
        i for i, outcome in enumerate(outcomes) if outcome.cause == 'timeout'
      ),
    )

  def _grade(self, cases: list[Case]) -> list[_Outcome]:
    if self._pool is None:
      return [_outcome(self._function, case) for case in cases]
    try:
      return self._grade_in_pool(cases)
    except RuntimeError:
      # Pebble's word for a broken pool: a worker died while none was at work,
      # for instance by the kernel's memory killer. No answer is to blame.
      self.close()
      self._pool = self._new_pool()
      return self._grade_in_pool(cases)

  def _grade_in_pool(self, cases: list[Case]) -> list[_Outcome]:
    futures = [
      self._pool.schedule(_work, args=(case,), timeout=self._config.timeout_s)
      for case in cases
    ]
    return [_collect(future) for future in futures]

  def _new_pool(self) -> pebble.ProcessPool:
    return pebble.ProcessPool(
      max_workers=self._config.workers,
      initializer=_start_worker,
      initargs=(self._config,),
      context=multiprocessing.get_context('spawn'),
    )


class Journal:
  """Answers that hit the time limit, so that a resumed run repeats them.

  Time is the one input that a second run need not repeat. Each line of the
  file names a batch of answers and the positions that timed out in it.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._timed_out: dict[str, tuple[int, ...]] = {}
    if path.exists():
      for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # A line cut by a kill.
          entry = json.loads(line)
          self._timed_out[entry['batch']] = tuple(entry['positions'])

  def replay(self, batch: str) -> tuple[int, ...]:
    return self._timed_out.get(batch, ())

  def record(self, batch: str, positions: tuple[int, ...]) -> None:
    if positions and positions != self.replay(batch):
      self._timed_out[batch] = positions
      with self._path.open('a') as file:
        line = json.dumps({'batch': batch, 'positions': positions})
        file.write(f'\n{line}')
        file.flush()
        os.fsync(file.fileno())


def resolve(name: str) -> Reward:
  """The reward of a built-in name or of 'package.module:function'.

  Raises:
    ConfigError: nothing callable under that name.
  """
  module_name, colon, function_name = name.partition(':')
  if not colon:
    config_lib.one_of(
      'reward.function', name, (*BUILT_IN, 'package.module:function')
    )
    return BUILT_IN[name]
  try:
    module = importlib.import_module(module_name)
  except (ImportError, ValueError) as error:
    raise config_lib.ConfigError(
      f'reward.function={name!r}: cannot import {module_name!r} ({error});'
      ' is its folder on PYTHONPATH?'
    ) from error
  function = getattr(module, function_name, None)
  config_lib.require(
    callable(function),
    f'reward.function={name!r}: no function {function_name!r} in'
    f' {module_name}' + config_lib.nearest(function_name, vars(module)),
  )
  return function


def _integer_after_hash(text: str, error: type[ValueError]) -> int:
  number = text.rpartition('#')[2].strip() if '#' in text else ''
  # int() would also take '1_0', '+1' and digits of other scripts, and raises
  # beyond 4300 digits.
  if not re.fullmatch('-?[0-9]{1,1000}', number):
    raise error(f"no integer after the last '#' of {text[-80:]!r}")
  return int(number)


def _marked(text: str) -> str:
  text = text.replace(r'\$', '')  # the currency, not the mark of mathematics
  if '####' not in text or r'\boxed' in text:
    return text
  return text.rpartition('####')[2].strip().partition('\n')[0]


def _before_closing_brace(text: str) -> str:
  """What stands before the brace that closes one opened before the text."""
  depth = 1
  for position, character in enumerate(text):
    depth += (character == '{') - (character == '}')
    if not depth:
      return text[:position]
  return text


def _one_spelling(text: str) -> str | None:
  text = re.sub(r'\\text\s*\{([^{}]*)\}', r'\1', text)
  text = re.sub(r'\\(?:left|right)(?![a-zA-Z])|\\[!,;:$]|[\s$]', '', text)
  text = re.sub(r'\\[dt]frac', r'\\frac', text).rstrip('.')
  if re.fullmatch(_NUMBER, text):
    text = re.sub(r'\.0+$', '', text.replace(',', ''))
  return text or None


# Also with the commas of thousands.
_NUMBER = r'-?\d+(?:,\d{3})*(?:\.\d+)?'


def _as_latex(text: str) -> str:
  return text if '$' in text or r'\boxed' in text else f'${text}$'


def _outcome(function: Reward, case: Case) -> _Outcome:
  """Calls `function`; what goes wrong becomes the cause, never an exception."""
  try:
    value = function(*case)
  except AnswerError:
    return _Outcome(0.0, 'parse')
  except GoldError:
    return _Outcome(0.0, 'gold')
  except MemoryError:
    return _Outcome(0.0, 'memory')
  except KeyboardInterrupt:
    raise
  except BaseException:
    # A foreign function may raise anything: sys.exit, math-verify's time-out.
    return _Outcome(0.0, 'error')
  # The bound also refuses NaN, and what float32 would turn into infinity.
  if isinstance(value, numbers.Real | np.bool_) and abs(value) <= _LARGEST:
    return _Outcome(float(value), None)
  return _Outcome(0.0, 'invalid')


# The reward of a worker process; the parent never sets it.
_worker_function: Reward
_worker_seconds: float


def _start_worker(config: config_lib.RewardConfig) -> None:
  """Runs once in each worker; what it loads is charged to no answer."""
  global _worker_function, _worker_seconds
  _worker_function = resolve(config.function)
  if _worker_function is mathematics:
    mathematics('', '1', r'\boxed{1}')  # sympy and the grammar: up to 2 s
  _worker_seconds = config.timeout_s
  # Pebble's handler would run between two byte codes; a loop inside C never
  # gets there.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  limit = config.memory_mb * 2**20
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _work(case: Case) -> _Outcome:
  # The parent kills at the deadline. The alarm is for a worker whose parent
  # is dead: its default action ends the process.
  signal.setitimer(signal.ITIMER_REAL, 2 * _worker_seconds)
  outcome = _outcome(_worker_function, case)
  signal.setitimer(signal.ITIMER_REAL, 0)
  if outcome.cause == 'memory':
    os._exit(_EXIT_MEMORY)  # what it still holds would fail the next answer
  return outcome


def _collect(future: pebble.ProcessFuture) -> _Outcome:
  try:
    return future.result()
  except TimeoutError:
    return _Outcome(0.0, 'timeout')
  except pebble.ProcessExpired as error:
    return _Outcome(0.0, _CAUSE_OF_EXIT.get(error.exitcode, 'crash'))
