"""Rewards as functions: found by name, read by their parameters, called.

How a reward of your own is called is read from its parameters:

| parameters | called with |
|---|---|
| three first ones, of any name | prompt, answer, response, by position |
| fewer, or `response` in another place | those of the three that it names, by name |
| `completions` | lists of one, by name, and returns a list: TRL's signature |
| `solution_str` | texts by verl's names |

Whatever else it names is a column of the dataset. With a default the column may
be absent, and **columns takes all of them.

Workers import this module, hence no jax here.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import importlib
import inspect
import numbers
import traceback
import types
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

import numpy as np

from gft_jax import answers as answers_lib
from gft_jax.config import ConfigError, RewardConfig, nearest, one_of, require

# The part of a sum that no text function gives; see Grader.score.
MODEL = 'model'
TEXTS = ('prompt', 'answer', 'response')
# The turns of a prompt, for rewards of TRL: kept where a dataset has them.
TURNS = 'prompts'
# What TRL's trainer passes and a grader of texts has not; None, where it is
# asked for.
_TRAINERS = ('completion_ids', 'trainer_state', 'log_extra', 'log_metric')
# What verl calls two of the texts.
_VERL = {'solution_str': 'response', 'ground_truth': 'answer'}
# Names of a response, or of an answer, that stand in the place of another text.
_RESPONSES = {'completion', 'generation', 'output', 'prediction'}
_ANSWERS = {'expected', 'gold', 'label', 'reference', 'target'}
_LARGEST = float(np.finfo(np.float32).max)
# The longest description of a failure, in characters.
_LONGEST = 300


class ReturnError(TypeError):
  """A reward returned something that is no finite number (cause 'invalid')."""


class Wanted(NamedTuple):
  """The columns of a dataset that rewards take.

  Attributes:
    required: column -> the reward that takes it, as pairs.
    optional: columns that may be absent.
    everything: a reward takes all there are.
  """

  required: frozenset[tuple[str, str]] = frozenset()
  optional: frozenset[str] = frozenset()
  everything: bool = False

  def joined(self, other: 'Wanted') -> 'Wanted':
    """What either of two takes."""
    return Wanted(
      self.required | other.required,
      self.optional | other.optional,
      self.everything or other.everything,
    )

  def takes(self, name: str) -> bool:
    """Whether a reward takes the column of this name."""
    required = {column for column, _ in self.required}
    return self.everything or name in required | self.optional

  def names(self, present: Collection[str], source: str) -> list[str]:
    """Those of the columns `present` that are taken.

    Args:
      present: names of the columns of `source`.
      source: a file, for the message.

    Raises:
      ConfigError: a reward requires a column that is absent.
    """
    for name, reward in sorted(self.required):
      there = ', '.join(present) or 'none'
      require(
        name in present,
        f'reward.function: {reward} takes {name!r}, which is neither'
        f' {", ".join(TEXTS)} nor a column of {source}; columns: {there}'
        + nearest(name, present),
      )
    return [name for name in present if self.takes(name)]


NOTHING = Wanted()


class Function(NamedTuple):
  """A reward and how it is called; of `read`.

  Attributes:
    name: as in reward.function.
    call: the function itself.
    style: 'position', 'name', 'verl' or 'lists'; see the head of this file.
    first: parameters that get the texts by position.
    named: parameters that are passed by name.
    wanted: those of them that are columns.
    unset: those of them that get None.
  """

  name: str
  call: Callable
  style: str = 'position'
  first: tuple[str, ...] = TEXTS
  named: frozenset[str] = frozenset()
  wanted: Wanted = NOTHING
  unset: tuple[str, ...] = ()

  def grade(
    self, prompt: str, answer: str, response: str, columns: dict[str, object]
  ) -> float | None:
    """The reward of one answer; None: a reward of TRL does not apply.

    Args:
      prompt: its text.
      answer: the reference.
      response: what the policy wrote.
      columns: of the row; the reward may change what they hold.

    Raises:
      ReturnError: it returned no finite number.
      BaseException: whatever the reward raises.
    """
    texts = dict(zip(TEXTS, (prompt, answer, response)))
    offered = self._offered(texts, columns)
    given = {
      name: value
      for name, value in offered.items()
      if name in self.named or self.wanted.everything
    }
    given |= dict.fromkeys(self.unset)
    by_position = texts.values() if self.style == 'position' else ()
    returned = self.call(*by_position, **given)
    if inspect.isawaitable(returned):
      returned = _awaited(returned)
    if self.style == 'lists':
      returned = self._entry(returned)
    if self.style == 'verl' and isinstance(returned, dict):
      returned = returned.get('score', returned)
    return None if self._skips(returned) else self._number(returned)

  def _offered(
    self, texts: dict[str, str], columns: dict[str, object]
  ) -> dict[str, object]:
    """Name -> value of all that the reward may take by name."""
    turns = columns.pop(TURNS, None)
    if self.style == 'lists':
      response = texts['response']
      said = [{'role': 'assistant', 'content': response}] if turns else response
      both = {'prompts': turns or texts['prompt'], 'completions': said}
      offered = {'answer': texts['answer']} | columns | both
      return {name: [value] for name, value in offered.items()}
    if self.style == 'position':
      return {k: v for k, v in columns.items() if k not in self.first}
    offered = columns | texts
    if self.style == 'verl':
      offered |= {name: texts[text] for name, text in _VERL.items()}
    return offered

  def _entry(self, returned: object) -> object:
    """What a list of TRL says of its only completion."""
    if getattr(returned, 'ndim', 0) == 1:
      returned = np.asarray(returned).tolist()
    if not isinstance(returned, list | tuple) or len(returned) != 1:
      raise ReturnError(
        f'{self.name} returned {_shown(returned)} for a list of one completion;'
        ' a reward that takes completions returns a list of as many numbers'
      )
    return returned[0]

  def _skips(self, returned: object) -> bool:
    return returned is None and self.style == 'lists'

  def _number(self, returned: object) -> float:
    # An array without axes, of NumPy, JAX or torch, is a number too.
    is_array = getattr(returned, 'shape', None) == ()
    number = np.asarray(returned).item() if is_array else returned
    if isinstance(number, numbers.Real):
      with contextlib.suppress(OverflowError):
        value = float(number)
        # It also refuses NaN, and what float32 would turn into infinity.
        if abs(value) <= _LARGEST:
          return value
    raise ReturnError(
      f'{self.name} returned {_shown(returned)}; a reward is one finite number'
    )


def resolve(name: str, settings: RewardConfig) -> Function:
  """The reward of a built-in name or of 'package.module:function'.

  A class is called without arguments, for an instance that can be called.

  Raises:
    ConfigError: nothing callable under that name, a module that cannot be
      imported, or a function that takes no text.
  """
  module_name, colon, function_name = name.partition(':')
  if not colon:
    known = answers_lib.built_in(settings)
    one_of('reward.function', name, (*known, MODEL, 'package.module:function'))
    return Function(name, known[name])
  module = _imported(name, module_name)
  function = getattr(module, function_name, None)
  if not callable(function):
    raise ConfigError(
      f'reward.function={name!r}: no function {function_name!r} in'
      f' {module_name}' + nearest(function_name, vars(module))
    )
  if inspect.isclass(function):
    return read(name, _instance(name, function))
  return read(name, function)


def _instance(name: str, kind: type) -> Callable:
  try:
    instance = kind()
  except Exception as error:
    raise ConfigError(
      f'reward.function={name!r} is a class that takes arguments'
      f' ({described(error)}); name an instance of it'
    ) from error
  if not callable(instance):
    raise ConfigError(
      f'reward.function={name!r} is a class without __call__; name a function'
    )
  return instance


def _imported(name: str, module_name: str) -> types.ModuleType:
  try:
    return importlib.import_module(module_name)
  except KeyboardInterrupt:
    raise
  except BaseException as error:  # A module may raise anything, also exit.
    why = f': {described(error)}'
    if isinstance(error, ModuleNotFoundError):
      if f'{module_name}.'.startswith(f'{error.name}.'):
        why = f' ({error}); is its folder on PYTHONPATH?'
    raise ConfigError(
      f'reward.function={name!r}: cannot import {module_name!r}{why}'
    ) from error


def read(name: str, function: Callable) -> Function:
  """How a function is called, by its parameters; see the head of this file.

  Raises:
    ConfigError: it takes no text to grade.
  """
  try:
    parameters = dict(inspect.signature(function).parameters)
  except (TypeError, ValueError):  # Some functions of C have no signature.
    return Function(name, function)
  if isinstance(function, functools.partial):
    for bound in function.keywords:
      parameters.pop(bound, None)
  kinds = [p.kind for p in parameters.values()]
  everything = inspect.Parameter.VAR_KEYWORD in kinds
  named = [key for key, p in parameters.items() if p.kind not in _SPREAD]
  first = [key for key in named if parameters[key].kind in _POSITIONAL][:3]
  style = 'name'
  if 'completions' in named:
    style = 'lists'
  elif 'solution_str' in named:
    style = 'verl'
  elif _in_place(named, first) and (len(first) == 3 or _SPREAD[0] in kinds):
    style, named = 'position', [key for key in named if key not in first]
  given = {'name': TEXTS, 'verl': (*TEXTS, *_VERL), 'lists': _LISTS}
  columns = [key for key in named if key not in given.get(style, ())]
  require(
    'completion_ids' not in columns or style == 'lists',
    f'reward.function={name!r} takes completion_ids, and a reward sees texts'
    ' alone; take completions',
  )
  taken = f'reward.function={name!r} takes ({", ".join(parameters)})'
  usual = f'a reward is a function ({", ".join(TEXTS)}) -> float'
  require(
    style != 'name' or everything or 'response' in named,
    f'{taken}, and no response; {usual}',
  )
  require(
    style != 'position'
    or not (_RESPONSES & {*first[:2]} or _ANSWERS & {*first[2:]}),
    f'{taken}, and would get them as {", ".join(TEXTS)}; {usual}',
  )
  needed = {k for k in columns if parameters[k].default is _NO_DEFAULT}
  unset = needed & set(_TRAINERS) if style == 'lists' else set()
  optional = {*columns} - needed
  if style == 'lists':
    optional |= {TURNS, 'answer'}
  wanted = Wanted(
    frozenset((key, name) for key in needed - unset),
    frozenset(optional - set(_TRAINERS)),
    everything,
  )
  return Function(
    name,
    function,
    style,
    tuple(first),
    frozenset(named),
    wanted,
    tuple(sorted(unset)),
  )


# What TRL passes of the texts; its `answer` is a column like others.
_LISTS = ('prompts', 'completions', 'answer')
_SPREAD = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_POSITIONAL = (
  inspect.Parameter.POSITIONAL_ONLY,
  inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_NO_DEFAULT = inspect.Parameter.empty


def _in_place(named: list[str], first: list[str]) -> bool:
  """Whether no parameter has the name of a text that stands elsewhere."""
  places = dict(zip(first, TEXTS))
  return all(key not in TEXTS or places.get(key) == key for key in named)


def described(error: BaseException, function: Callable | None = None) -> str:
  """An exception in one line, with the place in the user's code.

  Args:
    error: as it was caught.
    function: the reward; the place is in its file, where that is known.
  """
  text = ' '.join(str(error).split())[:_LONGEST]
  found = f'{type(error).__name__}: {text}' if text else type(error).__name__
  if isinstance(error, SyntaxError):
    return found  # It says the line itself.
  frames = traceback.extract_tb(error.__traceback__)
  frames = [f for f in frames if not f.filename.startswith(_NOT_THE_USERS)]
  code = _code_of(function)
  own = [f for f in frames if code and f.filename == code.co_filename]
  if own or frames:
    frame = (own or frames)[-1]
    return f'{found} ({frame.filename}:{frame.lineno}, in {frame.name})'
  if code:  # The call itself failed.
    return f'{found} ({code.co_filename}:{code.co_firstlineno})'
  return found


_NOT_THE_USERS = (__file__, '<frozen', importlib.__file__)


def _code_of(function: Callable | None) -> types.CodeType | None:
  while isinstance(function, functools.partial):
    function = function.func
  function = inspect.unwrap(function) if function else None
  if not hasattr(function, '__code__'):
    function = vars(type(function)).get('__call__')
  return getattr(function, '__code__', None)


def _awaited(returned: Awaitable[object]) -> object:
  """The result of an async reward, also where a loop runs in this thread."""

  async def wait() -> object:
    return await returned

  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    return thread.submit(asyncio.run, wait()).result()


def _shown(value: object) -> str:
  text = ' '.join(repr(value).split())
  text = text if len(text) <= 60 else f'{text[:60]}...'
  return f'{text} ({type(value).__name__})'
