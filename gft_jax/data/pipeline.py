"""Records -> batches of token ids, through Grain, without worker processes.

`load` tokenises a split once, drops what does not fit and counts it. The
iterator then only shuffles numbers of rows and pads; its position is a few
numbers in JSON, so that a run continues with exactly the batch it was due.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
import transformers

from gft_jax.batch import EXPERT, TEACHER
from gft_jax.config import DataConfig, GroupConfig, require
from gft_jax.data import builders


@dataclasses.dataclass(frozen=True)
class Examples:
  """Prompts with their given answers; the slots are experts, then teachers.

  Attributes:
    tokens: [B, P] int32, padded on the right with 0.
    length: [B] int32.
    index: [B] int32, the row of the dataset.
    given_tokens: [B, S, T] int32 for S = experts + teachers slots.
    given_length: [B, S] int32, EOS included; 0 is an empty slot.
    given_origin: [S] int32, EXPERT or TEACHER.
    prompts: B texts as in the dataset, before template and instruction.
    answers: B reference answers for the grader.
    given_texts: B lists of S texts without EOS; '' is an empty slot.
  """

  tokens: np.ndarray
  length: np.ndarray
  index: np.ndarray
  given_tokens: np.ndarray
  given_length: np.ndarray
  given_origin: np.ndarray
  prompts: list[str]
  answers: list[str]
  given_texts: list[list[str]]


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What became of a split.

  Attributes:
    rows: rows that are used.
    dropped: reason -> rows that are not.
    empty_slots: reason -> slots for given answers that are empty.
    tokens: 'prompt', 'expert', 'teacher' -> lengths of those used, [n] int32.
  """

  rows: int
  dropped: dict[str, int]
  empty_slots: dict[str, int]
  tokens: dict[str, np.ndarray]


class Ragged:
  """Rows of token ids of different lengths in one flat array."""

  def __init__(self, rows: Sequence[Sequence[int]]) -> None:
    self.length = np.fromiter(map(len, rows), np.int32, len(rows))
    self.start = np.concatenate([[0], np.cumsum(self.length)[:-1]])
    # One id more, so that an empty row at the end has somewhere to point.
    flat = (token for row in rows for token in row)
    total = int(self.length.sum())
    self.tokens = np.zeros(total + 1, np.int32)
    self.tokens[:total] = np.fromiter(flat, np.int32, total)

  def padded(
    self, rows: np.ndarray, width: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [..., width] padded with 0 and lengths [...] of rows [...]."""
    length, at = self.length[rows], np.arange(width)
    real = at < length[..., None]
    where = np.where(real, self.start[rows][..., None] + at, 0)
    return np.where(real, self.tokens[where], 0), length


class Dataset:
  """A tokenised split; rows are read by position.

  Attributes:
    statistics: counts of what is used and what is not.
    fingerprint: changes with any token of any row.
  """

  def __init__(
    self,
    source: builders.Source,
    config: DataConfig,
    group: GroupConfig,
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    seed: int,
    shard_index: int,
    shard_count: int,
  ) -> None:
    """Tokenises and filters; see `load` for arguments and errors."""
    self._config, self._seed = config, seed
    self._shard_index, self._shard_count = shard_index, shard_count
    self._origin = np.array(
      [EXPERT] * group.experts + [TEACHER] * group.teachers, np.int32
    )
    records = _texts(source.records, config.rows)
    prompts = _encode_prompts([r['prompt'] for r in records], config, tokenizer)
    experts = _encode_answers([r['expert'] for r in records], tokenizer)
    taught = [text for r in records for text in r['teacher']]
    teachers = iter(zip(taught, _encode_answers(taught, tokenizer)))

    unknown = _unknown_id(tokenizer)
    dropped, empty = collections.Counter(), collections.Counter()
    self._rows: list[dict] = []
    kept_prompts, given = [], []
    for record, prompt, expert in zip(records, prompts, experts):
      offered = [next(teachers) for _ in record['teacher']]
      reason = _unfit(prompt, expert, unknown, config, group)
      if reason:
        dropped[reason] += 1
        continue
      slots = [(record['expert'], expert)] * group.experts
      slots += _choose(offered, record['row'], config, group, seed, empty)
      if group.experts and not expert:
        empty['no expert'] += 1
      self._rows.append({**record, 'given': [text for text, _ in slots]})
      kept_prompts.append(prompt)
      given.extend(ids for _, ids in slots)
    self._prompts, self._given = Ragged(kept_prompts), Ragged(given)
    self._index = np.array([row['row'] for row in self._rows], np.int32)
    self._check(source, len(records), dropped)

    lengths = self._given.length.reshape(len(self), len(self._origin))
    self.statistics = Statistics(
      rows=len(self),
      dropped={**source.dropped, **dropped},
      empty_slots=dict(empty),
      tokens={
        'prompt': self._prompts.length,
        'expert': _real(lengths[:, self._origin == EXPERT]),
        'teacher': _real(lengths[:, self._origin == TEACHER]),
      },
    )
    digest = hashlib.sha256(self._index)
    for ragged in (self._prompts, self._given):
      digest.update(ragged.length)
      digest.update(ragged.tokens)
    self.fingerprint = digest.hexdigest()[:16]

  def __len__(self) -> int:
    return len(self._rows)

  def examples(self, positions: np.ndarray) -> Examples:
    """The rows at `positions` [B] of the tokenised split."""
    slots = len(self._origin)
    rows = [self._rows[i] for i in positions]
    tokens, length = self._prompts.padded(positions, self._config.max_prompt)
    given_tokens, given_length = self._given.padded(
      positions[:, None] * slots + np.arange(slots), self._config.max_response
    )
    return Examples(
      tokens=tokens,
      length=length,
      index=self._index[positions],
      given_tokens=given_tokens,
      given_length=given_length,
      given_origin=self._origin,
      prompts=[row['prompt'] for row in rows],
      answers=[row['answer'] for row in rows],
      given_texts=[row['given'] for row in rows],
    )

  def first(self, count: int) -> Examples:
    """The first `count` rows in order, or all where there are fewer."""
    return self.examples(np.arange(min(count, len(self))))

  def iterator(self) -> 'Batches':
    """Batches without end for this process.

    The rows of step n depend on the seed alone: process k has every
    shard_count-th row of the global batch, from row k. An epoch drops the rows
    that do not fill a batch, so a batch never holds a row twice; each epoch is
    shuffled anew.

    Raises:
      ConfigError: the batch does not divide, or exceeds the dataset.
    """
    size, shards = self._config.batch_size, self._shard_count
    require(
      size % shards == 0,
      f'data.batch_size={size} is not a multiple of {shards} processes',
    )
    require(
      size <= len(self),
      f'data.batch_size={size} exceeds the {len(self)} rows of the dataset',
    )
    positions = grain.MapDataset.range(len(self)).shuffle(self._seed)
    positions = positions[: len(self) // size * size].repeat()
    local = positions[self._shard_index :: shards].batch(size // shards)
    return Batches(local.map(self.examples), self.fingerprint)

  def _check(
    self, source: builders.Source, total: int, dropped: dict[str, int]
  ) -> None:
    """Refuses a split of which too much was dropped."""
    lost, config = sum(dropped.values()), self._config
    reasons = ', '.join(f'{n} {why}' for why, n in dropped.items())
    require(
      lost <= config.max_dropped * total and lost < total,
      f'{source.name}: {lost} of {total} rows dropped ({reasons}), a share of'
      f' {lost / max(total, 1):.2f} above data.max_dropped={config.max_dropped};'
      ' raise data.max_prompt or data.max_response, or data.max_dropped',
    )


class Batches(Iterator[Examples]):
  """An endless iterator with a position that can be saved."""

  def __init__(self, batches: grain.MapDataset, fingerprint: str) -> None:
    # No read-ahead threads: a batch costs about a millisecond.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self._iterator = iter(batches.to_iter_dataset(options))
    self._fingerprint = fingerprint

  def __next__(self) -> Examples:
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """The position, in JSON types."""
    return {
      'grain': self._iterator.get_state(),
      'fingerprint': self._fingerprint,
    }

  def set_state(self, state: dict[str, Any]) -> None:
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


def load(
  config: DataConfig,
  group: GroupConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  split: str,
  seed: int = 0,
  shard_index: int = 0,
  shard_count: int = 1,
) -> Dataset:
  """A tokenised split of the embedded task or of a file.

  A row is dropped, and counted, where its prompt has no token, more than
  max_prompt or an unknown one, and where the group has an expert whose answer
  with EOS exceeds max_response; a teacher's answer that is too long is left
  out. Nothing is cut.

  Args:
    config: path, template, lengths and limits.
    group: how many slots for experts and teachers; of more teachers than slots
      some are chosen by (seed, row). For evaluation give a group without
      experts, or rows with a long expert answer are dropped from it.
    tokenizer: with an EOS, which ends every given answer.
    split: see `builders.source`.
    seed: of the choice among teachers and of the order.
    shard_index: which process this is.
    shard_count: number of processes that share a batch.

  Raises:
    ConfigError: no such split, file or column; no EOS; no chat template where
      one is asked for; more dropped than max_dropped allows.
  """
  require(
    tokenizer.eos_token_id is not None,
    f'the tokenizer {tokenizer.name_or_path!r} has no EOS token, which must'
    ' end every answer',
  )
  return Dataset(
    builders.source(config, split),
    config,
    group,
    tokenizer,
    seed=seed,
    shard_index=shard_index,
    shard_count=shard_count,
  )


def _texts(records: Sequence[dict], rows: int) -> list[dict]:
  """The first `rows` records (0: all) as text."""
  count = min(rows, len(records)) if rows else len(records)
  return [
    {
      'row': int(record['row']),
      'prompt': record['prompt'].decode(),
      'answer': record['answer'].decode(),
      'expert': record['expert'].decode(),
      'teacher': [text.decode() for text in record['teacher']],
    }
    for record in records.__getitems__(range(count))
  ]


def _encode(
  texts: list[str], tokenizer: transformers.PreTrainedTokenizerBase
) -> list[list[int]]:
  if not texts:
    return []
  return tokenizer(
    texts,
    add_special_tokens=False,
    return_attention_mask=False,
    return_token_type_ids=False,
    verbose=False,
  )['input_ids']


def _encode_prompts(
  prompts: list[str],
  config: DataConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> list[list[int]]:
  """Ids of the prompts in their template, with BOS once where it is used."""
  if config.instruction:
    prompts = [f'{prompt}\n{config.instruction}' for prompt in prompts]
  has_template = tokenizer.chat_template is not None
  require(
    config.template != 'chat' or has_template,
    'data.template=chat, but the tokenizer has no chat template; use plain',
  )
  if config.template == 'plain' or not has_template:
    # The BOS that the tokenizer itself would put in front, if any.
    start = tokenizer('')['input_ids'][:1]
    start = start if start == [tokenizer.bos_token_id] else []
    return [
      ids if ids[:1] == start else start + ids
      for ids in _encode(prompts, tokenizer)
    ]
  # The template writes BOS where the model wants one.
  messages = [[{'role': 'user', 'content': prompt}] for prompt in prompts]
  rendered = tokenizer.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
  )
  return _encode(rendered, tokenizer)


def _encode_answers(
  answers: list[str], tokenizer: transformers.PreTrainedTokenizerBase
) -> list[list[int]]:
  """Ids with EOS; an absent answer, '', has none."""
  return [
    [*ids, tokenizer.eos_token_id] if answer else []
    for answer, ids in zip(answers, _encode(answers, tokenizer))
  ]


def _unknown_id(tokenizer: transformers.PreTrainedTokenizerBase) -> int | None:
  """The id that stands for unreadable text and for nothing else."""
  others = (
    tokenizer.bos_token_id,
    tokenizer.eos_token_id,
    tokenizer.pad_token_id,
  )
  return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


def _unfit(
  prompt: list[int],
  expert: list[int],
  unknown: int | None,
  config: DataConfig,
  group: GroupConfig,
) -> str:
  """Why a row is dropped, or ''."""
  if not prompt:
    return 'prompts without tokens'
  if unknown in prompt or (group.experts and unknown in expert):
    return 'with text that the tokenizer does not know'
  if len(prompt) > config.max_prompt:
    return f'prompts longer than data.max_prompt={config.max_prompt}'
  if group.experts and len(expert) > config.max_response:
    return f'experts longer than data.max_response={config.max_response}'
  return ''


def _choose(
  offered: list[tuple[str, list[int]]],
  row: int,
  config: DataConfig,
  group: GroupConfig,
  seed: int,
  empty: dict[str, int],
) -> list[tuple[str, list[int]]]:
  """The teachers of a row, (text, ids) per slot; counts the empty slots."""
  fitting = [pair for pair in offered if len(pair[1]) <= config.max_response]
  if len(fitting) > group.teachers:
    generator = np.random.Generator(np.random.PCG64([seed, row]))
    chosen = generator.permutation(len(fitting))[: group.teachers]
    return [fitting[i] for i in sorted(chosen)]
  missing = group.teachers - len(fitting)
  too_long = min(missing, len(offered) - len(fitting))
  if too_long:
    reason = f'teachers longer than data.max_response={config.max_response}'
    empty[reason] += too_long
  if missing > too_long:
    empty['fewer teachers than group.teachers'] += missing - too_long
  return fitting + [('', [])] * missing


def _real(lengths: np.ndarray) -> np.ndarray:
  return lengths[lengths > 0]
