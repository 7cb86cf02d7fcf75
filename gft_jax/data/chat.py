"""Conversations in the words of a chat template, and which tokens train.

A conversation is a list of turns {role, content}. What is asked ends where the
template would let the model speak; the answer is what follows, of which only
the assistant's own words train, each turn with the token that ends it.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jinja2
import numpy as np
import transformers
from transformers.utils import chat_template_utils

from gft_jax.config import require
from gft_jax.data.files import BadRow
from gft_jax.huggingface.tokenizer import DAY
from gft_jax.types import Json

# Texts that are tokenised together: their offsets take far more than their ids.
PART = 1024

Turns = list[dict[str, str]]
Tokenizer = transformers.PreTrainedTokenizerBase


# What a template raises of itself, or where a turn is not what it expects.
FAILURES = (jinja2.TemplateError, TypeError, ValueError)


class Written(NamedTuple):
  """An answer of several turns.

  Attributes:
    text: all that follows what is asked, up to the end of the last turn.
    spans: (begin, end) in `text` of what the assistant writes.
  """

  text: str
  spans: list[tuple[int, int]]


def user(content: str) -> Turns:
  """A conversation of one question."""
  return [{'role': 'user', 'content': content}]


def instructed(turns: Turns, instruction: str) -> Turns:
  """Adds a line to the last turn."""
  if not instruction:
    return turns
  *before, last = turns
  return [*before, {**last, 'content': f'{last["content"]}\n{instruction}'}]


def write(
  asked: Turns, answered: Turns, tokenizer: Tokenizer, call: str = ''
) -> Written:
  """The answer as the template writes it after what is asked.

  What trains is what the template marks with {% generation %}; without it, the
  text between the point where the template lets the assistant speak and the
  end of its turn, less the space between turns. That needs a template which
  writes a turn alike whatever follows it.

  Args:
    asked: turns of the prompt.
    answered: the rest, from the first answer on.
    tokenizer: with a chat template.
    call: of `tokenizer.missing_call`.

  Raises:
    BadRow: the template refuses these turns, or writes one otherwise later.
  """
  turns = [*asked, *answered]
  try:
    prompt = _render(asked, tokenizer, prompt=True) + call
    parts = [prompt]
    if _marks(tokenizer):
      text, spans = _marked(turns, tokenizer)
    else:
      text, spans = _render(turns, tokenizer), []
      for i in range(len(asked), len(turns)):
        if turns[i]['role'] == 'assistant':
          before = _render(turns[:i], tokenizer, prompt=True) + call
          after = _render(turns[: i + 1], tokenizer).rstrip()
          parts += [before, after]
          spans.append((len(before), len(after)))
  except FAILURES as error:
    raise BadRow(f'that the chat template refuses: {error}') from error
  if not all(text.startswith(part) for part in parts):
    raise BadRow('with turns that the chat template rewrites later')
  start = len(prompt)
  # Turns of the assistant in what is asked do not train.
  spans = [
    (max(begin, start) - start, begin - start + len(text[begin:end].rstrip()))
    for begin, end in spans
    if end > start
  ]
  if not spans:
    raise BadRow('whose answer the chat template does not write')
  return Written(text[start : start + spans[-1][1]], spans)


def check(asked: Turns, tokenizer: Tokenizer) -> None:
  """Raises BadRow where the template cannot write what is asked."""
  try:
    _render(asked, tokenizer, prompt=True)
  except FAILURES as error:
    raise BadRow(f'that the chat template refuses: {error}') from error


def encode(
  answers: Sequence[Written], tokenizer: Tokenizer
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Ids [n] of each answer and bool [n], which of them train.

  A token trains where its first character does. EOS ends the answer, and
  trains, where the template ends it with another token.

  Raises:
    ConfigError: the tokenizer cannot tell where its tokens stand.
  """
  require(
    tokenizer.is_fast or not answers,
    'conversations of several answers need a fast tokenizer, and'
    f' {tokenizer.name_or_path!r} is none',
  )
  eos = tokenizer.eos_token_id
  for part in (answers[i : i + PART] for i in range(0, len(answers), PART)):
    encoded = tokenizer(
      [answer.text for answer in part],
      add_special_tokens=False,
      return_attention_mask=False,
      return_token_type_ids=False,
      return_offsets_mapping=True,
      verbose=False,
    )
    for answer, ids, offsets in zip(
      part, encoded['input_ids'], encoded['offset_mapping']
    ):
      at = np.array(offsets, np.int64).reshape(-1, 2)[:, 0]
      begin, end = np.array(answer.spans).T
      span = np.searchsorted(begin, at, side='right') - 1
      trains = (span >= 0) & (at < end[span])
      if ids[-1:] != [eos]:
        ids, trains = [*ids, eos], np.append(trains, True)
      yield np.array(ids, np.int32), trains


def _render(turns: Turns, tokenizer: Tokenizer, *, prompt: bool = False) -> str:
  text = tokenizer.apply_chat_template(
    turns, tokenize=False, add_generation_prompt=prompt, **DAY
  )
  assert isinstance(text, str)  # Tokens where they are asked for.
  return text


def _marks(tokenizer: Tokenizer) -> bool:
  template = tokenizer.get_chat_template()
  return bool(re.search(r'\{%-?\s*generation\s*-?%\}', template))


def _marked(
  turns: Turns, tokenizer: Tokenizer
) -> tuple[str, list[tuple[int, int]]]:
  """The text, and the spans that the template marks."""
  names: Json = {**DAY, **tokenizer.special_tokens_map}
  texts, spans = chat_template_utils.render_jinja_template(
    [turns],
    chat_template=tokenizer.get_chat_template(),
    return_assistant_tokens_mask=True,
    **names,
  )
  # pyrefly: ignore[bad-return]  # transformers says str of a list of pairs.
  return texts[0], spans[0]
