"""The chat template of a tokenizer: how it asks, and how it ends a turn."""

import datetime
import functools
import inspect
import json
import re
from collections.abc import Callable
from typing import NamedTuple

import jinja2
import transformers
from transformers.utils import chat_template_utils

from gft_jax.config import ConfigError, nearest, require, template_arguments
from gft_jax.types import Json

# Turns are {role, content}, and what else a template reads of a turn, such as
# reasoning_content or tool_calls.
Conversation = list[Json]
Tokenizer = transformers.PreTrainedTokenizerBase

# What a template raises of itself, or where a turn is not what it expects.
FAILURES = (jinja2.TemplateError, TypeError, ValueError)
# The day of every template that writes the date: with today's, a run would
# refuse its own data tomorrow. Llama 3's templates name it where told none.
DAY = datetime.date(2024, 7, 26)
# Takes the place of the function that gives a template the time.
CLOCK = (
  '{%- macro strftime_now(format) -%}{{ format'
  + ''.join(
    f"|replace('{code}', '{DAY.strftime(code)}')"
    for code in '%-d %e %d %-m %m %b %B %a %A %j %y %Y %H %I %M %S %p'.split()
  )
  + ' }}{%- endmacro -%}'
)
# Words that no template writes of itself. The last character is in no text.
WORDS = 'gft_jax: the words of the assistant\ufdd2'
ASKED = {'role': 'user', 'content': 'What is 1 + 1?'}
SAID = {'role': 'assistant', 'content': WORDS}


class Frame(NamedTuple):
  """What a template writes around the words of an assistant.

  Attributes:
    prompt: a question and the call for an answer.
    before: the same question in a whole conversation, up to the words.
    earlier: `before`, where another turn follows.
    tail: from the words to the end of that conversation.
    end: the first part of the tail, which ends the turn.
    follows: from the words on, where another turn follows.
  """

  prompt: str
  before: str
  earlier: str
  tail: str
  end: str
  follows: str


class ChatTemplate:
  """The template of a tokenizer under the arguments of a run.

  Attributes:
    call: what the template leaves out where it ignores
      `add_generation_prompt`; see `_missing_call`.
  """

  def __init__(self, tokenizer: Tokenizer, arguments: str = ''):
    """Takes a tokenizer with a template, and `data.template_args`.

    Raises:
      ConfigError: the template fails, does not write what a user says, has no
        place for an answer, or does not read one of the arguments.
    """
    self.tokenizer = tokenizer
    given = template_arguments(arguments)
    try:
      self._check(given, str(tokenizer.get_chat_template()))
      self._given: Json = {'date_string': DAY.strftime('%d %b %Y'), **given}
      self.call = self._missing_call()
      require(
        ASKED['content'] in self.prompt([ASKED]),
        f'the chat template of {self._name} does not write what a user says as'
        ' text; use data.template=plain',
      )
    except FAILURES as error:
      if isinstance(error, ConfigError):
        raise
      reason = ' '.join(str(error).split())
      raise ConfigError(
        f'the chat template of {self._name} fails: {reason}; use'
        ' data.template=plain, or mend it'
      ) from error

  def render(self, turns: Conversation, tools: list | None = None) -> str:
    """The whole conversation as text."""
    return self._render(turns, tools, prompt=False)

  def prompt(self, turns: Conversation, tools: list | None = None) -> str:
    """The conversation as text, up to the assistant's next words.

    It has the BOS that the template writes: encode it without special tokens.
    """
    return self._render(turns, tools, prompt=True) + self.call

  def marked(
    self, turns: Conversation, tools: list | None = None
  ) -> tuple[str, list[tuple[int, int]]]:
    """The whole conversation, and the spans that {% generation %} marks."""
    names: Json = {**self.tokenizer.special_tokens_map, **self._given}
    texts, spans = chat_template_utils.render_jinja_template(
      [self._with_arguments(turns, tools, prompt=False)],
      tools,
      chat_template=self._source(bool(tools)),
      return_assistant_tokens_mask=True,
      **names,
    )
    # pyrefly: ignore[bad-return]  # transformers says str of a list of pairs.
    return texts[0], spans[0]

  def check_system(self) -> None:
    """Raises ConfigError where the template does not write a system turn."""
    turns: Conversation = [{'role': 'system', 'content': WORDS}, ASKED]
    try:
      fault = '' if WORDS in self.prompt(turns) else 'does not write one'
    except FAILURES as error:
      fault = f'refuses one: {" ".join(str(error).split())}'
    require(
      not fault,
      f'data.system is a system turn, and the chat template of {self._name}'
      f' {fault}; say it in data.instruction',
    )

  @functools.cached_property
  def marks(self) -> bool:
    """Whether the template says itself what an assistant writes."""
    return bool(re.search(r'\{%-?\s*generation\s*-?%\}', self._source(False)))

  @functools.cached_property
  def frame(self) -> Frame | None:
    """What stands around an answer; None where the template writes none."""
    try:
      prompt, both = self.prompt([ASKED]), self.render([ASKED, SAID])
    except FAILURES:
      return None
    before, found, tail = both.partition(WORDS)
    if not found:
      return None
    try:
      longer = self.render([ASKED, SAID, ASKED])
    except FAILURES:
      longer = both
    earlier, _, follows = longer.partition(WORDS)
    end = tail[: shared(tail, follows)]
    # Two tokens may begin alike: <|endoftext|> and <|user|>.
    for token in added_tokens(self.tokenizer).finditer(tail):
      if token.start() < len(end) < token.end():
        end = tail[: token.start()]
    end = end.rstrip() or tail.rstrip()
    return Frame(prompt, before, earlier, tail, end, follows)

  @property
  def _name(self) -> str:
    return self.tokenizer.name_or_path or 'the tokenizer'

  def _render(
    self, turns: Conversation, tools: list | None, *, prompt: bool
  ) -> str:
    turns = self._with_arguments(turns, tools, prompt=prompt)
    return self._apply(turns, tools, prompt=prompt)

  def _with_arguments(
    self, turns: Conversation, tools: list | None, *, prompt: bool
  ) -> Conversation:
    """The turns, what they call tools with as the template reads it.

    That is an object, or where the template refuses one or prints it as Python
    does, the JSON of it.
    """
    objects, texts = _called(turns, _as_object), _called(turns, _as_text)
    if objects == texts:
      return turns
    try:
      text = self._apply(objects, tools, prompt=prompt)
    except FAILURES:
      return texts
    printed = [repr(found) for found in _arguments(objects)]
    return texts if any(p in text for p in printed) else objects

  def _apply(
    self, turns: Conversation, tools: list | None, *, prompt: bool
  ) -> str:
    text = self.tokenizer.apply_chat_template(
      turns,
      tools,
      chat_template=self._source(bool(tools)),
      tokenize=False,
      add_generation_prompt=prompt,
      **self._given,
    )
    assert isinstance(text, str)  # Tokens where they are asked for.
    return text

  def _source(self, tools: bool) -> str:
    """The text of the template, with a clock that stands still."""
    text = self.tokenizer.get_chat_template(tools=[] if tools else None)
    return CLOCK + text if 'strftime_now' in text else text

  def _check(self, given: Json, source: str) -> None:
    taken = inspect.signature(self.tokenizer.apply_chat_template).parameters
    names = set(re.findall(r'[A-Za-z_]\w*', source)) - {*taken, 'messages'}
    for name, value in given.items():
      require(
        name in names,
        f'data.template_args: the chat template of {self._name} has no argument'
        f' {name!r}' + nearest(name, names),
      )
      asked = rf'\b{name}\s+is\s+(not\s+)?(sameas[\s(]+)?(true|false)\b'
      require(
        value is None
        or isinstance(value, bool)
        or not re.search(asked, source),
        f'data.template_args: {name}={value} is neither true nor false, which'
        f' the chat template of {self._name} asks for',
      )

  def _missing_call(self) -> str:
    """What a template that ignores `add_generation_prompt` leaves out.

    Without it the model would go on with the user's turn. It is what the
    template writes between that and an assistant's words. Space alone is not
    wanted: then the user's turn itself ends with the call, as in Llama 2.
    """
    turn = self.render([ASKED])
    if self._render([ASKED], None, prompt=True) != turn:
      return ''
    both = self.render([ASKED, SAID])
    require(
      both.startswith(turn) and WORDS in both,
      f'the chat template of {self._name} ignores add_generation_prompt,'
      " and does not write an assistant's words after the user's; use"
      ' data.template=plain',
    )
    call = both[len(turn) : both.index(WORDS)]
    return call if call.strip() else ''


def names_called(turn: Json) -> list[str]:
  """The names of the tools that a turn calls."""
  calls = turn.get('tool_calls')
  found = [
    call.get('function', call)
    for call in (calls if isinstance(calls, list) else [])
    if isinstance(call, dict)
  ]
  return [str(f.get('name') or '') for f in found if isinstance(f, dict)]


def _called(
  turns: Conversation, function: Callable[[object], object]
) -> Conversation:
  """The turns with other arguments in their calls of tools."""

  def changed(call: object) -> object:
    if not isinstance(call, dict):
      return call
    call = {k: changed(v) if k == 'function' else v for k, v in call.items()}
    if 'arguments' in call:
      call['arguments'] = function(call['arguments'])
    return call

  return [
    {**turn, 'tool_calls': list(map(changed, turn['tool_calls']))}
    if isinstance(turn.get('tool_calls'), list)
    else turn
    for turn in turns
  ]


def _arguments(turns: Conversation) -> list[object]:
  """Those that JSON and Python spell differently."""
  found: list[object] = []
  _called(turns, found.append)
  return [value for value in found if repr(value) != _as_text(value)]


def _as_object(value: object) -> object:
  if not isinstance(value, str):
    return value
  try:
    found = json.loads(value.strip() or '{}')
  except (ValueError, RecursionError):
    return value
  return found if isinstance(found, dict) else value


def _as_text(value: object) -> object:
  if isinstance(value, str):
    return value
  return json.dumps(value, ensure_ascii=False)


def shared(a: str, b: str) -> int:
  """How many characters two texts have in common at their start."""
  pairs = enumerate(zip(a, b))
  return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def added_tokens(
  tokenizer: Tokenizer, *, special: bool = False
) -> re.Pattern[str]:
  """Finds the added tokens in a text, or the special ones of them alone."""
  found = {
    token.content
    for token in tokenizer.added_tokens_decoder.values()
    if token.content and (token.special or not special)
  }
  longest_first = sorted(found, key=len, reverse=True)
  return re.compile('|'.join(map(re.escape, longest_first)) or r'(?!)')


def turn_end(tokenizer: Tokenizer) -> int | None:
  """The token by which the chat template ends a turn of the assistant.

  Where it writes nothing there, the token that begins the next turn; None where
  there is no template, or where it ends a turn with ordinary text.
  """
  if tokenizer.chat_template is None:
    return None
  try:
    frame = ChatTemplate(tokenizer).frame
  except ConfigError:
    return None  # Whoever asks it says why.
  end = frame.end if frame else ''
  if frame and not end:
    found = added_tokens(tokenizer).match(frame.follows)
    end = found[0] if found else ''
  for last in tokenizer(end, add_special_tokens=False)['input_ids'][-1:]:
    token = tokenizer.added_tokens_decoder.get(last)
    # The unknown token stands for other text.
    if token is not None and end.endswith(token.content):
      return last
  return None
