"""Tokens <-> text on the host, and where a stop string ends an answer."""

import bisect
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from gft_jax.batch import Prompts, Responses
from gft_jax.thoughts import open_thought
from gft_jax.types import Tokenizer

# The most tokens of a mark that opens thoughts.
MARK_TOKENS = 32


def cut_at_stop_strings(
  tokenizer: Tokenizer, responses: Responses, stop_strings: tuple[str, ...]
) -> Responses:
  """Ends each response with the token that completes a stop string.

  Tokens, length and behaviour log-probabilities are cut alike, on the host. The
  text that is searched has its special tokens.
  """
  if not stop_strings:
    return responses
  shape = responses.length.shape
  length = np.array(responses.length).reshape(-1)
  tokens = np.asarray(responses.tokens).reshape(len(length), -1)

  def stopped(row, count):
    return _holds(_text(tokenizer, tokens[row, :count]), stop_strings)

  for row, count in enumerate(length):
    if stopped(row, count):
      length[row] = 1 + bisect.bisect_left(
        range(1, count), True, key=lambda n, row=row: stopped(row, n)
      )
  length = length.reshape(shape)
  real = np.arange(responses.tokens.shape[-1]) < length[..., None]
  return responses.replace(
    tokens=np.where(real, responses.tokens, 0),
    length=length,
    behavior_logp=np.where(real, responses.behavior_logp, 0),
  )


def decode_responses(
  tokenizer: Tokenizer,
  responses: Responses,
  stop_ids: tuple[int, ...],
  stop_strings: tuple[str, ...] = (),
  prompts: Prompts | None = None,
) -> tuple[list[list[str]], Bool[np.ndarray, 'B G']]:
  """Response tokens -> texts, and who finished.

  A text lacks the token that ended it, and holds every other. It begins with
  what its prompt has opened, such as <think>; see `open_thought`. There may be
  more prompts than rows of responses, as padding.

  Returns:
    [B][G] texts, and who finished: the last token is a stop token, or the text
    holds a stop string. A response that ran into the length limit is not
    finished.
  """
  tokens = np.asarray(responses.tokens)
  length = np.asarray(responses.length)
  last = np.take_along_axis(
    tokens, np.maximum(length - 1, 0)[..., None], axis=-1
  )[..., 0]
  ended = np.isin(last, stop_ids) & (length > 0)
  size = length.shape[1]
  answers = [
    row[:count]
    for row, count in zip(
      tokens.reshape(-1, tokens.shape[-1]).tolist(), length.ravel().tolist()
    )
  ]
  finished = ended
  if stop_strings:
    whole = tokenizer.batch_decode(answers)
    stopped = np.array([_holds(text, stop_strings) for text in whole])
    stopped = stopped.reshape(length.shape)
    finished = ended | stopped
    # A stop string may be a special token, which ends an answer likewise.
    special = tokenizer.batch_decode(
      last.reshape(-1, 1).tolist(), skip_special_tokens=True
    )
    unseen = np.array([text == '' for text in special]).reshape(length.shape)
    ended |= stopped & unseen & (length > 0)
  flat = tokenizer.batch_decode(
    [row[:-1] if end else row for row, end in zip(answers, ended.ravel())]
  )
  opened = [''] * len(length)
  if prompts is not None:
    opened = _opened(tokenizer, prompts)
  texts = [
    [opened[b] + text for text in flat[b * size : (b + 1) * size]]
    for b in range(len(length))
  ]
  return texts, finished


def _opened(tokenizer: Tokenizer, prompts: Prompts) -> list[str]:
  """What each of B prompts has opened."""
  tokens, length = np.asarray(prompts.tokens), np.asarray(prompts.length)
  ends = [
    row[max(count - MARK_TOKENS, 0) : count].tolist()
    for row, count in zip(tokens, length)
  ]
  return [open_thought(text) for text in tokenizer.batch_decode(ends)]


def token_pieces(
  tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray
) -> list[str]:
  """The text of each token; together they are the decoded tokens.

  Tokens of a byte-level vocabulary may hold parts of a character: the last of
  them gets it, and the others ''. Takes time quadratic in the length.
  """
  whole = _text(tokenizer, tokens)
  found, end = [], 0
  for count in range(1, len(tokens)):
    text = _text(tokenizer, tokens[:count])
    # A character that lacks some of its bytes is decoded as U+FFFD.
    start, end = end, max(end, len(text.rstrip('\ufffd')))
    found.append(whole[start:end])
  return [*found, whole[end:]] if len(tokens) else []


def _text(tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray) -> str:
  whole = tokens if isinstance(tokens, np.ndarray) else list(tokens)
  text = tokenizer.decode(whole)
  assert isinstance(text, str), 'the tokens of one answer'
  return text


def _holds(text: str, strings: tuple[str, ...]) -> bool:
  return any(string in text for string in strings)
