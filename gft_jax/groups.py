"""Given + sampled + scores -> GroupBatch, on the host.

Members stand in a fixed order: experts, teachers, then the policy's own. A
whole group stays together in one optimizer mini-batch. (The official code
sorts the rows of a batch so that its first updates see own samples and its
last ones demonstrations: ZJU-OmniAI/GFT at 763384d, ray_trainer.py:1357.)
"""

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gft_jax.batch import SELF, GroupBatch, Prompts, Responses
from gft_jax.ops import advantages


def join(
  given: Responses, given_origin: np.ndarray, sampled: Responses | None
) -> tuple[Responses, np.ndarray]:
  """Puts given and sampled answers side by side on the group axis.

  Args:
    given: answers of the dataset, [B, E, T]; E may be 0.
    given_origin: [B, E] int32.
    sampled: the policy's answers [B, S, T], or None for no samples.

  Returns:
    Responses [B, E + S, T] and origin [B, E + S], as numpy arrays. Where some
    tokens of the given do not train, all of the sampled do.
  """
  if sampled is None:
    return jax.tree.map(np.asarray, given), np.asarray(given_origin, np.int32)
  if given.trained is not None:
    sampled = sampled.replace(trained=np.ones(sampled.tokens.shape, bool))
  responses = jax.tree.map(
    lambda a, b: np.concatenate([np.asarray(a), np.asarray(b)], axis=1),
    given,
    sampled,
  )
  own = np.full(sampled.length.shape, SELF, np.int32)
  return responses, np.concatenate([given_origin, own], axis=1, dtype=np.int32)


def build(
  prompts: Prompts,
  responses: Responses,
  origin: np.ndarray,
  rewards: np.ndarray,
) -> GroupBatch:
  """A scored group batch; a response of length 0 is an empty slot.

  Args:
    prompts: B prompts.
    responses: [B, G, T] from `join`.
    origin: [B, G] from `join`.
    rewards: [B, G] float32; ignored at empty slots.

  Raises:
    ValueError: shapes that disagree, with both.
  """
  if rewards.shape != responses.length.shape:
    raise ValueError(
      f'rewards of shape {rewards.shape} for responses of shape'
      f' {responses.length.shape}'
    )
  member_mask = np.asarray(responses.length) > 0
  return GroupBatch(
    prompts=prompts,
    responses=responses,
    rewards=np.where(member_mask, rewards, 0).astype(np.float32),
    origin=np.asarray(origin, np.int32),
    member_mask=member_mask,
  )


def flat(batch: GroupBatch) -> np.ndarray:
  """[B] bool: groups whose rewards are all equal, so that none has a lesson."""
  return np.asarray(advantages.is_flat(batch.rewards, batch.member_mask))


def refill(batch: GroupBatch, further: GroupBatch) -> GroupBatch:
  """Replaces flat groups, in order, by those of `further` that are not.

  Args:
    batch: B groups.
    further: groups of the same shape.

  Returns:
    B groups; the flat ones that `further` cannot replace stay.
  """
  vacant, useful = np.flatnonzero(flat(batch)), np.flatnonzero(~flat(further))
  count = min(len(vacant), len(useful))

  def one(x, y):
    x = np.array(x)
    x[vacant[:count]] = np.asarray(y)[useful[:count]]
    return x

  return jax.tree.map(one, batch, further)


class Scored(NamedTuple):
  """Scores of a batch of groups.

  Attributes:
    rewards: [B, G] float32; 0 at empty slots.
    parts: name -> [B, G] float32, the summands of a reward without weights.
    failures: cause -> number of answers, from the grader.
    timed_out: flat positions b * G + g of answers that hit the time limit.
  """

  rewards: np.ndarray
  parts: dict[str, np.ndarray]
  failures: dict[str, int]
  timed_out: tuple[int, ...]


def cut(
  tokenizer: Any, responses: Responses, stop_strings: tuple[str, ...]
) -> Responses:
  """Ends each response with the token that completes a stop string.

  Tokens, length and behaviour log-probabilities are cut alike, on the host. The
  text that is searched has its special tokens.
  """
  if not stop_strings:
    return responses
  shape = responses.length.shape
  length = responses.length.reshape(-1).copy()
  tokens = responses.tokens.reshape(len(length), -1)

  def stopped(row, count):
    return _holds(tokenizer.decode(tokens[row, :count]), stop_strings)

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


def decode(
  tokenizer: Any,
  responses: Responses,
  stop_ids: tuple[int, ...],
  stop_strings: tuple[str, ...] = (),
) -> tuple[list[list[str]], np.ndarray]:
  """Response tokens -> texts without special tokens, and who finished.

  Returns:
    [B][G] texts and [B, G] bool: the last token is a stop token, or the text
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


def pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
  """The text of each token; together they are the decoded tokens.

  Tokens of a byte-level vocabulary may hold parts of a character: the last of
  them gets it, and the others ''. Takes time quadratic in the length.
  """
  whole = tokenizer.decode(tokens)
  found, end = [], 0
  for count in range(1, len(tokens)):
    text = tokenizer.decode(tokens[:count])
    # A character that lacks some of its bytes is decoded as U+FFFD.
    start, end = end, max(end, len(text.rstrip('\ufffd')))
    found.append(whole[start:end])
  return [*found, whole[end:]] if len(tokens) else []


def _holds(text: str, strings: tuple[str, ...]) -> bool:
  return any(string in text for string in strings)


def score(
  grader: Any,
  prompts: Sequence[str],
  answers: Sequence[str],
  texts: Sequence[Sequence[str]],
  present: np.ndarray,
  finished: np.ndarray,
  *,
  judged: np.ndarray | None = None,
  timed_out: Sequence[int] = (),
) -> Scored:
  """Grades every answer of every group.

  Args:
    grader: a rewards.Grader.
    prompts: B texts.
    answers: B reference answers.
    texts: [B][G] responses.
    present: [B, G] bool; an empty slot is not graded.
    finished: [B, G] bool, of `decode`.
    judged: [B, G] float32, what a reward model says, or None.
    timed_out: flat positions that are replayed as time-outs, not graded.
  """
  size = present.shape[1]
  positions = np.flatnonzero(present)
  scores = grader.score(
    [prompts[i // size] for i in positions],
    [answers[i // size] for i in positions],
    [texts[i // size][i % size] for i in positions],
    finished=finished.ravel()[positions],
    judged=None if judged is None else judged.ravel()[positions],
    timed_out=np.searchsorted(positions, timed_out).tolist(),
  )

  def spread(values):
    slots = np.zeros(present.shape, np.float32)
    slots.ravel()[positions] = values
    return slots

  return Scored(
    rewards=spread(scores.values),
    parts={name: spread(values) for name, values in scores.parts.items()},
    failures=dict(scores.failures),
    timed_out=tuple(positions[list(scores.timed_out)].tolist()),
  )
