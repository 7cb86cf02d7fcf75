"""A tokenised split: rows by position, and batches without end.

The iterator only shuffles numbers of rows and pads; its position is a few
numbers in JSON, so that a run continues with exactly the batch it was due.
Grain reads it without worker processes.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import grain
import numpy as np
from jaxtyping import Bool, Int

from gft_jax.batch import EXPERT, TEACHER
from gft_jax.config import DataConfig, GroupConfig, require
from gft_jax.rewards.grader import Problems
from gft_jax.types import Json

# Rows that a line names.
NAMED = 5
# Token ids of one text, or for each of its tokens whether it trains.
Ids: TypeAlias = Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Examples:
  """Prompts with their given answers; the slots are experts, then teachers.

  Attributes:
    tokens: int32, padded on the right with 0.
    length: int32.
    index: int32, the row of the dataset.
    given_tokens: int32, for S = experts + teachers slots.
    given_length: int32, EOS included; 0 is an empty slot.
    given_origin: int32, EXPERT or TEACHER.
    prompts: B texts as in the dataset, before template and instruction; of a
      conversation the user's last turn.
    answers: B reference answers for the grader.
    given_texts: B lists of S texts to be graded, without EOS; '' is an empty
      slot. Of an answer of several turns it is the last. Where an answer has
      thoughts they stand as they train; see chat.Written.
    given_trained: the tokens that train, where some answers hold turns of a
      user; None: all do.
    columns: B texts of JSON, what else the reward takes of the rows; empty
      where it takes nothing.
  """

  tokens: Int[np.ndarray, 'B P']
  length: Int[np.ndarray, ' B']
  index: Int[np.ndarray, ' B']
  given_tokens: Int[np.ndarray, 'B S T']
  given_length: Int[np.ndarray, 'B S']
  given_origin: Int[np.ndarray, ' S']
  prompts: list[str]
  answers: list[str]
  given_texts: list[list[str]]
  given_trained: Bool[np.ndarray, 'B S T'] | None = None
  columns: list[str] = dataclasses.field(default_factory=list)

  @property
  def problems(self) -> Problems:
    """What answers are graded by."""
    return Problems(self.prompts, self.answers, self.columns)


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What became of a split.

  Attributes:
    rows: rows that are used.
    dropped: reason -> numbers of the rows that are not.
    empty_slots: reason -> slots for given answers that are empty.
    notes: what else is not as the file has it -> numbers of its rows.
    left_out: reason -> numbers of the rows whose teachers cannot be read.
    tokens: 'prompt', 'expert', 'teacher' -> lengths of those used, int32.
  """

  rows: int
  dropped: dict[str, list[int]]
  empty_slots: dict[str, int]
  notes: dict[str, list[int]]
  left_out: dict[str, list[int]]
  tokens: dict[str, Int[np.ndarray, ' n']]

  def lines(self) -> list[str]:
    """What is not used, and what is not as the file has it, a line each."""
    said = (
      *((f'dropped, {why}', found) for why, found in self.dropped.items()),
      *((f'left out, {why}', found) for why, found in self.left_out.items()),
      *self.notes.items(),
    )
    return [
      f'{what}, {len(rows)} row{"s" * (len(rows) > 1)}: '
      + ', '.join(map(str, rows[:NAMED]))
      + (', ...' if len(rows) > NAMED else '')
      for what, rows in said
    ]


@dataclasses.dataclass(frozen=True)
class Losses:
  """What a split lacks of its rows; see Statistics."""

  dropped: dict[str, list[int]]
  empty_slots: dict[str, int]
  notes: dict[str, list[int]]
  left_out: dict[str, list[int]] = dataclasses.field(default_factory=dict)

  def drop(self, reason: str, row: int) -> None:
    self.dropped.setdefault(reason, []).append(row)

  def leave_empty(self, reason: str, slots: int = 1) -> None:
    self.empty_slots[reason] = self.empty_slots.get(reason, 0) + slots

  def note(self, note: str, row: int) -> None:
    self.notes.setdefault(note, []).append(row)


class Ragged:
  """Rows of token ids of different lengths in one flat array."""

  def __init__(self, rows: Sequence[Ids]) -> None:
    self.length = np.fromiter(map(len, rows), np.int32, len(rows))
    self.start = np.cumsum(self.length, dtype=np.int64) - self.length
    # One id at least, for the padding of empty rows to read.
    self.tokens = np.concatenate(
      [np.asarray(row, np.int32) for row in ([0], *rows)]
    )

  def padded(
    self, rows: Int[np.ndarray, '*batch'], width: int
  ) -> tuple[Int[np.ndarray, '*batch {width}'], Int[np.ndarray, '*batch']]:
    """Tokens of some rows, padded with 0, and their lengths."""
    length, at = self.length[rows], np.arange(width)
    real = at < length[..., None]
    where = np.where(real, 1 + self.start[rows][..., None] + at, 0)
    return self.tokens[where], length


class Row(NamedTuple):
  """A row that fits; `given` is (text, ids) per slot.

  `trained` says for each token of the expert, the first slot, whether it
  trains; None: all do.
  """

  index: int
  prompt: str
  answer: str
  ids: list[int]
  given: list[tuple[str, Ids]]
  trained: Bool[np.ndarray, ' n'] | None


class Dataset:
  """A tokenised split; rows are read by position.

  Attributes:
    name: of the file or the task, for messages.
    statistics: counts of what is used and what is not.
    fingerprint: changes with any token of any row, and with columns that its
      reward requires.
  """

  def __init__(
    self,
    name: str,
    rows: Sequence[Row],
    losses: Losses,
    config: DataConfig,
    group: GroupConfig,
    columns: Sequence[str] = (),
    *,
    required: bool = False,
  ) -> None:
    """Packs the rows; `load` makes them.

    The fingerprint has the columns where they are `required`: runs that began
    before a reward could take any then go on.
    """
    self.name = name
    self._widths = config.max_prompt, config.max_response
    self._origin = np.array(
      [EXPERT] * group.experts + [TEACHER] * group.teachers, np.int32
    )
    self._texts = [
      (row.prompt, row.answer, [text for text, _ in row.given]) for row in rows
    ]
    self._columns = columns
    self._index = np.array([row.index for row in rows], np.int32)
    self._prompts = Ragged([row.ids for row in rows])
    self._given = Ragged([ids for row in rows for _, ids in row.given])
    self._trained = None
    if any(row.trained is not None for row in rows):
      self._trained = Ragged(
        [
          row.trained
          if slot == 0 and row.trained is not None
          else [True] * len(ids)
          for row in rows
          for slot, (_, ids) in enumerate(row.given)
        ]
      )

    lengths = self._given.length.reshape(len(rows), len(self._origin))
    self.statistics = Statistics(
      rows=len(rows),
      dropped=losses.dropped,
      empty_slots=losses.empty_slots,
      notes=losses.notes,
      left_out=losses.left_out,
      tokens={
        'prompt': self._prompts.length,
        'expert': _real(lengths[:, self._origin == EXPERT]),
        'teacher': _real(lengths[:, self._origin == TEACHER]),
      },
    )
    digest = hashlib.sha256(self._index.data)
    digest.update('\0'.join(row.answer for row in rows).encode())
    for ragged in filter(None, (self._prompts, self._given, self._trained)):
      digest.update(ragged.length.data)
      digest.update(ragged.tokens.data)
    if required:
      digest.update('\0'.join(columns).encode())
    self.fingerprint = digest.hexdigest()[:16]

  def __len__(self) -> int:
    return len(self._texts)

  def examples(self, positions: Int[np.ndarray, ' B']) -> Examples:
    """The rows at these positions of the tokenised split."""
    slots = len(self._origin)
    width_prompt, width_response = self._widths
    tokens, length = self._prompts.padded(positions, width_prompt)
    given = positions[:, None] * slots + np.arange(slots)
    given_tokens, given_length = self._given.padded(given, width_response)
    trained = None
    if self._trained is not None:
      trained = self._trained.padded(given, width_response)[0].astype(bool)
    texts = [self._texts[i] for i in positions]
    return Examples(
      tokens=tokens,
      length=length,
      index=self._index[positions],
      given_tokens=given_tokens,
      given_length=given_length,
      given_origin=self._origin,
      prompts=[prompt for prompt, _, _ in texts],
      answers=[answer for _, answer, _ in texts],
      given_texts=[given for _, _, given in texts],
      given_trained=trained,
      columns=[self._columns[i] for i in positions] if self._columns else [],
    )

  def first(self, count: int) -> Examples:
    """The first `count` rows in order, or all where there are fewer."""
    return self.examples(np.arange(min(count, len(self))))

  def batches(
    self, size: int, seed: int, shard_index: int = 0, shard_count: int = 1
  ) -> 'Batches':
    """Batches without end for one process.

    The rows of step n depend on the seed alone: process k has the k-th of
    shard_count equal parts of the global batch, so a device sees the same rows
    whichever process it belongs to. An epoch drops the rows that do not fill a
    batch, so a batch never holds a row twice; each epoch is shuffled anew.

    Args:
      size: rows of the global batch.
      seed: of the order.
      shard_index: which process this is.
      shard_count: number of processes that share a batch.

    Raises:
      ConfigError: the batch does not divide, or exceeds the dataset.
    """
    require(
      size % shard_count == 0,
      f'data.batch_size={size} is not a multiple of {shard_count} processes',
    )
    require(
      size <= len(self),
      f'data.batch_size={size} exceeds the {len(self)} rows of the dataset',
    )
    schedule = _Schedule(len(self), size, seed)
    share = size // shard_count
    local = slice(shard_index * share, (shard_index + 1) * share)
    batches = grain.MapDataset.source(schedule).map(
      lambda positions: self.examples(positions[local])
    )
    return Batches(batches, self.fingerprint)


class _Schedule:
  """Step -> positions of the global batch, for Grain to read.

  A permutation per epoch, kept until the next: Grain's own shuffle computes
  every position anew, at 10 to 80 microseconds each.
  """

  def __init__(self, rows: int, size: int, seed: int) -> None:
    self._rows, self._size, self._seed = rows, size, seed
    self._epoch, self._order = -1, np.empty(0, np.int64)

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> Int[np.ndarray, ' B']:
    epoch, batch = divmod(index, self._rows // self._size)
    if epoch != self._epoch:
      generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
      self._epoch, self._order = epoch, generator.permutation(self._rows)
    return self._order[batch * self._size : (batch + 1) * self._size]


class Batches(Iterator[Examples]):
  """An endless iterator with a position that can be saved."""

  def __init__(self, batches: grain.MapDataset, fingerprint: str) -> None:
    # No read-ahead threads: a batch costs about a millisecond.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self._iterator = iter(batches.to_iter_dataset(options))
    self._fingerprint = fingerprint

  def __next__(self) -> Examples:
    return next(self._iterator)

  def get_state(self) -> dict[str, object]:
    """The position, in JSON types."""
    return {
      'grain': self._iterator.get_state(),
      'fingerprint': self._fingerprint,
    }

  def set_state(self, state: Json) -> None:
    """Continues from `state`.

    Raises:
      ConfigError: the position is one of other data.
    """
    require(
      state['fingerprint'] == self._fingerprint,
      f'the data has changed since the checkpoint: fingerprint'
      f' {self._fingerprint}, not {state["fingerprint"]}; use a new workdir',
    )
    self._iterator.set_state(state['grain'])


def _real(lengths: Int[np.ndarray, 'B S']) -> Int[np.ndarray, ' n']:
  return lengths[lengths > 0]
