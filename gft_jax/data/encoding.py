"""Texts -> ids, and which of the tokens train."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import transformers

from gft_jax.config import require
from gft_jax.data.chat import ESCAPE, ESCAPED, Writer, Written

# Texts that are tokenised together: what the tokenizer keeps of a token is
# thirty times its id, and more with the place of each.
PART = 1024

Tokenizer = transformers.PreTrainedTokenizerBase


def encode_texts(
  texts: Sequence[str], tokenizer: Tokenizer
) -> Iterator[list[int]]:
  """Ids of each text; what stands between ESCAPE and ESCAPED is no token."""
  for ids, _ in _encoded(texts, tokenizer, places=False):
    yield ids


def encode_answers(
  answers: Sequence[Written | None], writer: Writer
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
  """Ids [n] of each answer and bool [n], which of them train; None: all.

  A token trains where its first character does. EOS ends an answer where
  nothing else does. An answer that is None has no token.

  Raises:
    ConfigError: the tokenizer cannot tell where its tokens stand.
  """
  tokenizer, size = writer.tokenizer, PART
  places = any(answer and answer.spans for answer in answers)
  require(
    tokenizer.is_fast or not places,
    'conversations of several answers need a fast tokenizer, and'
    f' {tokenizer.name_or_path!r} is none',
  )
  texts = [answer.text if answer else '' for answer in answers]
  for start in range(0, len(texts), size):
    part = slice(start, start + size)
    places = any(answer and answer.spans for answer in answers[part])
    for answer, (ids, at) in zip(
      answers[part], _encoded(texts[part], tokenizer, places=places)
    ):
      yield _ended(answer, ids, at, writer)


def _ended(
  answer: Written | None, ids: list[int], at: list[int], writer: Writer
) -> tuple[np.ndarray, np.ndarray | None]:
  trains = None
  if answer and answer.spans:
    begin, end = np.array(answer.spans).T
    places = np.array(at, np.int64)
    span = np.searchsorted(begin, places, side='right') - 1
    trains = (span >= 0) & (places < end[span])
  if answer and not (ids and ids[-1] in writer.ends):
    ids = [*ids, writer.tokenizer.eos_token_id]
    trains = None if trains is None else np.append(trains, True)
  return np.array(ids, np.int32), trains


def _encoded(
  texts: Sequence[str], tokenizer: Tokenizer, *, places: bool
) -> Iterator[tuple[list[int], list[int]]]:
  """Ids of each text, and on demand where each token begins."""
  for start in range(0, len(texts), PART):
    part = list(texts[start : start + PART])
    encoded = tokenizer(
      part,
      add_special_tokens=False,
      return_attention_mask=False,
      return_token_type_ids=False,
      return_offsets_mapping=places,
      verbose=False,
    )
    offsets = encoded['offset_mapping'] if places else [[]] * len(part)
    for text, ids, pairs in zip(part, encoded['input_ids'], offsets):
      if ESCAPE in text:
        yield _encoded_in_pieces(text, tokenizer, places=places)
      else:
        yield ids, [begin for begin, _ in pairs]


def _encoded_in_pieces(
  text: str, tokenizer: Tokenizer, *, places: bool
) -> tuple[list[int], list[int]]:
  ids, at, start = [], [], 0
  for number, piece in enumerate(re.split(f'[{ESCAPE}{ESCAPED}]', text)):
    encoded = tokenizer(
      piece,
      add_special_tokens=False,
      split_special_tokens=number % 2 == 1,
      return_offsets_mapping=places,
      verbose=False,
    )
    ids += encoded['input_ids']
    pairs = encoded['offset_mapping'] if places else []
    at += [start + begin for begin, _ in pairs]
    start += len(piece) + 1
  return ids, at
