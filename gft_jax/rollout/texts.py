"""Tokens <-> text on the host, and where a stop string ends an answer."""

import bisect
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from gft_jax.batch import Responses
from gft_jax.types import Tokenizer


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
) -> tuple[list[list[str]], Bool[np.ndarray, 'B G']]:
  """Response tokens -> texts without special tokens, and who finished.

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
  finished = np.isin(last, stop_ids) & (length > 0)
  size = length.shape[1]
  answers = [
    row[:count]
    for row, count in zip(
      tokens.reshape(-1, tokens.shape[-1]).tolist(), length.ravel().tolist()
    )
  ]
  if stop_strings:
    whole = tokenizer.batch_decode(answers)
    stopped = np.array([_holds(text, stop_strings) for text in whole])
    finished |= stopped.reshape(finished.shape)
  flat = tokenizer.batch_decode(answers, skip_special_tokens=True)
  texts = [flat[i : i + size] for i in range(0, len(flat), size)]
  return texts, finished


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
