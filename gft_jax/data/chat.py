"""Prompts and answers as the texts that are asked and trained on.

A conversation is a list of turns {role, content, ...}. What is asked ends where
the chat template would let the model speak; an answer is what the template
writes behind it, of which only the assistant's own words train, each turn with
the token that ends it.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import transformers

from gft_jax.config import DataConfig, require
from gft_jax.data.files import BadRow
from gft_jax.huggingface import end_ids
from gft_jax.huggingface.chat_template import (
  FAILURES,
  WORDS,
  ChatTemplate,
  added_tokens,
  names_called,
  shared,
)
from gft_jax.thoughts import (
  REASONING,
  Thoughts,
  closed_thought,
  is_doubled,
  is_thought,
  never_closes,
  open_thought,
  thought_at_start,
  thoughts_of,
  without_mark,
)
from gft_jax.types import Json

# Around special tokens that are read as ordinary text; no file has them.
ESCAPE, ESCAPED = '\ufdd0', '\ufdd1'
# What is said of given answers that are not as the row has them.
LOST = (
  'given answers lose thoughts or words, or calls of tools: the chat template'
  ' leaves them out'
)
EMPTY = 'given answers train with empty thoughts, which the chat template opens'

Turns = list[Json]
Tokenizer = transformers.PreTrainedTokenizerBase


class Written(NamedTuple):
  """An answer.

  Attributes:
    text: all that follows what is asked, up to the end of the last turn.
    spans: (begin, end) in `text` of what the assistant writes; None: all of it.
    graded: what a reward reads: the last turn as the row has it, or where it
      has thoughts, as it trains.
    note: LOST, EMPTY or ''.
  """

  text: str
  spans: list[tuple[int, int]] | None
  graded: str
  note: str = ''


class Spoken(NamedTuple):
  """What an assistant writes in one turn of a rendered conversation.

  Attributes:
    begin: where the rendered text comes to the turn.
    call: what the call for an answer has in that place, and the text has not.
    words: what the turn says.
    ending: what ends it.
    end: where the rendered text goes on.
  """

  begin: int
  call: str
  words: str
  ending: str
  end: int


class Writer:
  """Writes what is asked and answered, as the settings of a run say.

  Attributes:
    tokenizer: of the policy.
    is_chat: whether it writes with a chat template.
    ends: ids, one of which ends an answer.
  """

  def __init__(self, config: DataConfig, tokenizer: Tokenizer):
    """Takes the settings of the data.

    Raises:
      ConfigError: there is no chat template where one is asked for, or it
        cannot be used; see ChatTemplate.
    """
    has_one = tokenizer.chat_template is not None
    require(
      config.template != 'chat' or has_one,
      'data.template=chat, but the tokenizer has no chat template; use plain',
    )
    self._template = None
    if config.template != 'plain' and has_one:
      self._template = ChatTemplate(tokenizer, config.template_args)
    for name in ('template_args', 'system'):
      require(
        self._template is not None or not getattr(config, name),
        f'data.{name}={getattr(config, name)!r} is for a chat template, but'
        f' data.template={config.template} and the tokenizer has'
        f' {"one" if has_one else "none"}; leave it empty',
      )
    if config.system and self._template is not None:
      self._template.check_system()
    self.tokenizer = tokenizer
    self.is_chat = self._template is not None
    self.ends = end_ids(tokenizer)
    self._ends = [str(tokenizer.decode([i])) for i in self.ends]
    self._policy = config.special_tokens
    self._instruction, self._system = config.instruction, config.system
    self._added = added_tokens(tokenizer)
    self._special = added_tokens(tokenizer, special=True)
    unknown = unknown_id(tokenizer)
    self._unknown = None if unknown is None else tokenizer.unk_token
    self._prefilled = self._find_prefilled()

  def asked(self, prompt: str | Turns) -> Turns:
    """The turns of a prompt, with the instruction and a system turn.

    Raises:
      BadRow: special tokens, where data.special_tokens drops them.
    """
    turns = user(prompt) if isinstance(prompt, str) else prompt
    turns = instructed(self._bare(turns), self._instruction)
    if self._system and all(turn['role'] != 'system' for turn in turns):
      turns = [{'role': 'system', 'content': self._system}, *turns]
    if self._template is not None:
      return self._checked(turns)
    # BOS stands once, see `pipeline`; a mark at the end opens thoughts.
    *before, last = turns
    text, bos = last['content'], self.tokenizer.bos_token
    begun = bos if isinstance(bos, str) and text.startswith(bos) else ''
    rest = text.removeprefix(begun)
    mark = open_thought(rest)
    rest = self._safe(rest.removesuffix(mark))
    return [*before, {**last, 'content': begun + rest + mark}]

  def prompt(self, asked: Turns, tools: list | None = None) -> str:
    """The turns of `asked` as text.

    Raises:
      BadRow: the template refuses them.
    """
    if self._template is None:
      return asked[-1]['content']
    try:
      return self._template.prompt(asked, self._checked(tools))
    except FAILURES as error:
      raise _refused(error) from error

  def answer(
    self,
    asked: Turns,
    answered: str | Turns,
    prompt: str,
    tools: list | None = None,
  ) -> Written:
    """An answer to `asked`, which stands as text in `prompt`.

    Its turns are written as the template writes them. Where the call for an
    answer opens thoughts, they are closed before the words: an answer that has
    none trains with empty ones. Where no template writes it, it is a text
    behind the prompt, which may open its thoughts.

    Raises:
      BadRow: the template refuses these turns or does not write them, thoughts
        that a turn opens and never closes, or special tokens, where
        data.special_tokens drops them.
    """
    if isinstance(answered, str):
      answered = [{'role': 'assistant', 'content': answered}]
    turns = self._checked(self._bare(answered))
    if any(never_closes(turn.get('content') or '') for turn in _said(turns)):
      raise BadRow('whose thoughts never close')
    template = self._template
    if template is None or template.frame is None:
      if len(turns) > 1:
        raise BadRow('whose turns the chat template does not write')
      return _plain(turns[0], prompt)
    try:
      return self._written(template, asked, turns, prompt, self._checked(tools))
    except FAILURES as error:
      raise _refused(error) from error

  def plain(self, answered: str, prompt: str) -> Written:
    """An answer as a text behind `prompt`, whether it is whole or not."""
    turn = {'role': 'assistant', 'content': answered}
    (turn,) = self._checked(self._bare([turn]))
    return _plain(turn, prompt)

  def _written(
    self,
    template: ChatTemplate,
    asked: Turns,
    answered: Turns,
    prompt: str,
    tools: list | None,
  ) -> Written:
    """The first way to write these turns that keeps the thoughts, or any."""
    best = None
    for way in _ways(answered):
      turns = [*asked, *way]
      calls = {
        i: prompt if i == len(asked) else template.prompt(turns[:i], tools)
        for i in range(len(asked), len(turns))
        if turns[i]['role'] == 'assistant'
      }
      text = template.render(turns, tools)
      spoken = self._spoken(template, turns, calls, text, tools)
      if not spoken or any(
        is_doubled(self._begun(call) + turn.words, turns[i])
        for (i, call), turn in zip(calls.items(), spoken)
      ):
        continue
      written = _joined(text, spoken)
      if template.marks and text.startswith(prompt + written.text):
        marked = template.marked(turns, tools)[1]
        spans = _clipped(marked, len(prompt), written.text, spoken[-1].ending)
        written = written._replace(spans=spans)
      marks = [open_thought(call) for call in calls.values()]
      said = [mark + turn.words for mark, turn in zip(marks, spoken)]
      had = list(map(thoughts_of, _said(answered), marks))
      note = LOST
      if all(map(_holds, said, _said(answered), had)):
        empty = any(m and not h.thoughts for m, h in zip(marks, had))
        note = EMPTY if empty else ''
      content = answered[-1].get('content') or ''
      graded = unescaped(said[-1] if had[-1].thoughts else content)
      written = written._replace(graded=graded, note=note)
      if note != LOST:
        return written
      best = best or written
    if best is None:
      raise BadRow('with turns that the chat template rewrites later')
    return best

  def _spoken(
    self,
    template: ChatTemplate,
    turns: Turns,
    calls: dict[int, str],
    text: str,
    tools: list | None,
  ) -> list[Spoken]:
    """The turns of the assistant in `text`; [] where one is not found."""
    frame, spoken = template.frame, []
    assert frame is not None
    places = [self._begin(text, call) for call in calls.values()]
    if min(places) < 0:
      return []
    for (i, call), begin, limit in zip(
      calls.items(), places, [*places[1:], len(text)]
    ):
      more = call[begin:]
      if i + 1 == len(turns):
        after, ending = len(text.rstrip()), ''
        if text.endswith(frame.tail):
          after, ending = len(text) - len(frame.tail), frame.end
      else:
        other = {**turns[i], 'content': WORDS}
        other = template.render([*turns[:i], other, *turns[i + 1 :]], tools)
        after = len(text) - shared(text[::-1], other[::-1])
        after, ending = self._next_end(text[:limit], after, frame.end)
      if after < begin:
        return []
      words, mark = text[begin:after], open_thought(call)
      if mark and (more or closed_thought(mark) not in words):
        words = _composed(turns[i], words, mark)
      spoken.append(Spoken(begin, more, words, ending, after + len(ending)))
    return spoken

  def _next_end(self, text: str, start: int, end: str) -> tuple[int, str]:
    """Where and by what a turn ends that others follow."""
    found = text.find(end, start) if end else start
    if found >= 0:
      return found, end
    # What ends the last turn of a conversation may end no other.
    token = self._added.search(text, start)
    return (token.start(), token[0]) if token else (start, '')

  def _find_prefilled(self) -> set[str]:
    """What the call for an answer may have, and a turn that is over has not.

    Templates of thinking models leave thoughts out of what was said before,
    and open them in the call alone.
    """
    frame = self._template.frame if self._template else None
    if frame is None:
      return {''}
    call, begun = frame.prompt, open_thought(frame.prompt)
    stem = call.removesuffix(begun)
    further = {
      call[shared(stem, before) :]
      for before in (frame.before, frame.earlier)
      if not before.startswith(call)
    }
    return {'', begun} | further

  def _begun(self, call: str) -> str:
    return max((e for e in self._prefilled if call.endswith(e)), key=len)

  def _begin(self, text: str, call: str) -> int:
    """Where a text has the turn that `call` calls for; -1: it has none."""
    ends = (len(call) - len(e) for e in self._prefilled if call.endswith(e))
    return max((n for n in ends if text.startswith(call[:n])), default=-1)

  def _bare(self, turns: Turns) -> Turns:
    """The turns, those of the assistant without the tokens that end them."""
    return [
      {**turn, 'content': self._without_end(turn['content'])}
      if turn['role'] == 'assistant' and isinstance(turn.get('content'), str)
      else turn
      for turn in turns
    ]

  def _without_end(self, text: str) -> str:
    bare = text.rstrip()
    for end in self._ends:
      if bare.endswith(end):
        return self._without_end(bare.removesuffix(end))
    return text

  def _checked(self, values: Any) -> Any:
    """Turns or tools, special tokens in them dropped, escaped or kept."""
    return values and [
      _mapped(
        v, functools.partial(self._safe, thinks=v.get('role') == 'assistant')
      )
      for v in values
    ]

  def _safe(self, text: str, *, thinks: bool = False) -> str:
    if self._policy == 'keep':
      return text
    # The unknown token has a reason of its own to be dropped. Marks of thoughts
    # are words of the assistant; others speak of them, and no row is dropped.
    found = [
      m
      for m in self._special.finditer(text)
      if m[0] != self._unknown and not (thinks and is_thought(m[0]))
    ]
    others = [m[0] for m in found if not is_thought(m[0])]
    if others and self._policy == 'drop':
      raise BadRow(
        f'with the special token {others[0]} in a text; see data.special_tokens'
      )
    for m in reversed(found):
      escaped = f'{ESCAPE}{m[0]}{ESCAPED}'
      text = text[: m.start()] + escaped + text[m.end() :]
    return text


def unknown_id(tokenizer: Tokenizer) -> int | None:
  """The id that stands for unreadable text and for nothing else."""
  others = (
    tokenizer.bos_token_id,
    tokenizer.eos_token_id,
    tokenizer.pad_token_id,
  )
  return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


def user(content: str) -> Turns:
  """A conversation of one question."""
  return [{'role': 'user', 'content': content}]


def instructed(turns: Turns, instruction: str) -> Turns:
  """Adds a line to the last turn."""
  if not instruction:
    return turns
  *before, last = turns
  return [*before, {**last, 'content': f'{last["content"]}\n{instruction}'}]


def _said(turns: Turns) -> Turns:
  """The turns of the assistant."""
  return [turn for turn in turns if turn.get('role') == 'assistant']


def _plain(turn: Json, prompt: str) -> Written:
  """An answer as a text behind a prompt, which may open its thoughts."""
  mark = open_thought(prompt)
  text = without_mark(turn.get('content') or '', mark)
  had = thoughts_of(turn, mark)
  note = '' if _holds(mark + text, turn, had) else LOST
  graded = unescaped(mark + text) if text.strip() else ''
  return Written(text, None, graded, note)


def _holds(said: str, turn: Json, had: Thoughts) -> bool:
  """Whether what trains has the thoughts, words and calls of a turn."""
  parts = [had.thoughts, had.words.strip(), *names_called(turn)]
  return all(part in said for part in parts)


def unescaped(text: str) -> str:
  """A text as its row has it."""
  return text.replace(ESCAPE, '').replace(ESCAPED, '')


def _ways(turns: Turns) -> Iterator[Turns]:
  """The turns as they are, their thoughts apart, and without thoughts."""
  yield turns
  parts = [
    thoughts_of(turn) if turn['role'] == 'assistant' else Thoughts('', '', '')
    for turn in turns
  ]
  if not any(part.mark or part.thoughts for part in parts):
    return
  bare = [
    {k: v for k, v in turn.items() if k not in REASONING}
    | ({'content': part.words} if part.mark or part.thoughts else {})
    for turn, part in zip(turns, parts)
  ]
  yield [
    {**turn, REASONING[0]: part.thoughts} if part.thoughts else turn
    for turn, part in zip(bare, parts)
  ]
  yield bare


def _composed(turn: Json, words: str, mark: str) -> str:
  """The words of a turn behind a call that opens its thoughts with `mark`."""
  content, closed = turn.get('content') or '', closed_thought(mark)
  if closed in content:
    return content[len(thought_at_start(content)) :]
  words = words[len(thought_at_start(words)) :]
  thoughts = thoughts_of(turn, mark).thoughts
  if words.lstrip().startswith(closed):
    return f'{thoughts}\n{words}' if thoughts else words
  return f'{thoughts}\n{closed}\n\n{words}'


def _joined(text: str, spoken: list[Spoken]) -> Written:
  """The answer; between turns stands what the template writes there."""
  found, spans, at = '', [], spoken[0].begin
  for number, turn in enumerate(spoken):
    if number:  # The first call is asked.
      found += text[at : turn.begin] + turn.call
    begin = len(found)
    found += turn.words + turn.ending
    spans.append((begin, len(found)))
    at = turn.end
  return Written(found, spans if len(spans) > 1 else None, '')


def _clipped(
  spans: list[tuple[int, int]], start: int, text: str, ending: str
) -> list[tuple[int, int]]:
  """Spans of a conversation -> spans of the answer, which begins at `start`.

  What ends the answer trains, whatever the marks say: it would never stop.
  """
  found = []
  for begin, end in spans:
    begin, end = max(begin - start, 0), min(end - start, len(text))
    end = begin + len(text[begin:end].rstrip())
    if begin < end:
      found.append((begin, end))
  if not found:
    raise BadRow('whose answer the chat template does not write')
  begin, end = found[-1]
  if text[end:].strip() == ending.strip():
    found[-1] = begin, len(text)
  return found


def _mapped(value: Any, function: Callable[[str], str]) -> Any:
  """A value of JSON with every text in it changed."""
  if isinstance(value, str):
    return function(value)
  if isinstance(value, list):
    return [_mapped(item, function) for item in value]
  if isinstance(value, dict):
    return {key: _mapped(item, function) for key, item in value.items()}
  return value


def _refused(error: Exception) -> BadRow:
  if isinstance(error, BadRow):
    return error
  reason = ' '.join(str(error).split())
  return BadRow(f'that the chat template refuses: {reason}')
