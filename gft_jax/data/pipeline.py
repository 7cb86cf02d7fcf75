"""Records -> batches of token ids, through Grain, without worker processes.

`load` tokenises a split once, drops what does not fit and counts it. The
iterator then only shuffles numbers of rows and pads; its position is a few
numbers in JSON, so that a run continues with exactly the batch it was due.
"""

import collections
import dataclasses
import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
import transformers

from gft_jax import data
from gft_jax.batch import EXPERT, TEACHER, Prompts, Responses
from gft_jax.config import DataConfig, GroupConfig, require
from gft_jax.data import builders, chat, files
from gft_jax.huggingface.tokenizer import chat_prompts, missing_call

# Widths of what `encode_groups` encodes.
MULTIPLE = 64


# Texts that are tokenised together.
ENCODED = 4096


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
    prompts: B texts as in the dataset, before template and instruction; of a
      conversation the user's last turn.
    answers: B reference answers for the grader.
    given_texts: B lists of S texts without EOS; '' is an empty slot. Of an
      answer of several turns it is the last.
    given_trained: [B, S, T] bool, the tokens that train, where some answers
      hold turns of a user; None: all do.
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
  given_trained: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What became of a split.

  Attributes:
    rows: rows that are used.
    dropped: reason -> numbers of the rows that are not.
    empty_slots: reason -> slots for given answers that are empty.
    tokens: 'prompt', 'expert', 'teacher' -> lengths of those used, [n] int32.
  """

  rows: int
  dropped: dict[str, list[int]]
  empty_slots: dict[str, int]
  tokens: dict[str, np.ndarray]


class Ragged:
  """Rows of token ids of different lengths in one flat array."""

  def __init__(self, rows: Sequence[Sequence[int]]) -> None:
    self.length = np.fromiter(map(len, rows), np.int32, len(rows))
    self.start = np.cumsum(self.length, dtype=np.int64) - self.length
    # One id at least, for the padding of empty rows to read.
    self.tokens = np.concatenate(
      [np.asarray(row, np.int32) for row in ([0], *rows)]
    )

  def padded(
    self, rows: np.ndarray, width: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [..., width] padded with 0 and lengths [...] of rows [...]."""
    length, at = self.length[rows], np.arange(width)
    real = at < length[..., None]
    where = np.where(real, 1 + self.start[rows][..., None] + at, 0)
    return self.tokens[where], length


class _Row(NamedTuple):
  """A row that fits; `given` is (text, ids) per slot.

  `trained` says for each token of the expert, the first slot, whether it
  trains; None: all do.
  """

  index: int
  prompt: str
  answer: str
  ids: list[int]
  given: list[tuple[str, Sequence[int]]]
  trained: np.ndarray | None


class Dataset:
  """A tokenised split; rows are read by position.

  Attributes:
    name: of the file or the task, for messages.
    statistics: counts of what is used and what is not.
    fingerprint: changes with any token of any row.
  """

  def __init__(
    self,
    name: str,
    rows: Sequence[_Row],
    dropped: dict[str, list[int]],
    empty_slots: dict[str, int],
    config: DataConfig,
    group: GroupConfig,
  ) -> None:
    """Packs the rows; `load` makes them."""
    self.name = name
    self._widths = config.max_prompt, config.max_response
    self._origin = np.array(
      [EXPERT] * group.experts + [TEACHER] * group.teachers, np.int32
    )
    self._texts = [
      (row.prompt, row.answer, [text for text, _ in row.given]) for row in rows
    ]
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
      dropped=dropped,
      empty_slots=empty_slots,
      tokens={
        'prompt': self._prompts.length,
        'expert': _real(lengths[:, self._origin == EXPERT]),
        'teacher': _real(lengths[:, self._origin == TEACHER]),
      },
    )
    digest = hashlib.sha256(self._index)
    digest.update('\0'.join(row.answer for row in rows).encode())
    for ragged in filter(None, (self._prompts, self._given, self._trained)):
      digest.update(ragged.length)
      digest.update(ragged.tokens)
    self.fingerprint = digest.hexdigest()[:16]

  def __len__(self) -> int:
    return len(self._texts)

  def examples(self, positions: np.ndarray) -> Examples:
    """The rows at `positions` [B] of the tokenised split."""
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
  """Step -> positions [size] of the global batch, for Grain to read.

  A permutation per epoch, kept until the next: Grain's own shuffle computes
  every position anew, at 10 to 80 microseconds each.
  """

  def __init__(self, rows: int, size: int, seed: int) -> None:
    self._rows, self._size, self._seed = rows, size, seed
    self._epoch, self._order = -1, np.empty(0, np.int64)

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, step: int) -> np.ndarray:
    epoch, batch = divmod(step, self._rows // self._size)
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
) -> Dataset:
  """A tokenised split of the embedded task or of a file.

  A row is dropped, and named, where its prompt has no token, more than
  max_prompt or an unknown one, where the group has an expert whose answer with
  EOS exceeds max_response, where there is more than an expert to grade but no
  reference answer, and where the chat template cannot write a conversation; a
  teacher's answer that is too long is left out. Nothing is cut.

  Args:
    config: path, template, lengths and limits.
    group: how many slots for experts and teachers; of more teachers than slots
      some are chosen by (seed, row). For evaluation give a group without
      experts, or rows with a long expert answer are dropped from it.
    tokenizer: with an EOS, which ends every given answer.
    split: see `builders.source`.
    seed: of the choice among teachers, and of a task of Reasoning Gym.

  Raises:
    ConfigError: no such split, file or column; no EOS; no chat template where
      one is asked for; more dropped than max_dropped allows.
  """
  require(
    tokenizer.eos_token_id is not None,
    f'the tokenizer {tokenizer.name_or_path!r} has no EOS token, which must'
    ' end every answer',
  )
  source = builders.source(config, split, seed)
  total = min(config.rows or len(source.rows), len(source.rows))
  rows, dropped, empty_slots = _fit(
    source.rows[:total], config, group, tokenizer, seed
  )
  lost = total - len(rows)
  reasons = ', '.join(f'{len(n)} {why}' for why, n in dropped.items())
  require(
    lost <= config.max_dropped * total and lost < total,
    f'{source.name}: {lost} of {total} rows are dropped ({reasons}), a share of'
    f' {lost / total:.2f} above data.max_dropped={config.max_dropped}',
  )
  dropped = {**source.dropped, **dropped}
  return Dataset(source.name, rows, dropped, empty_slots, config, group)


def _fit(
  rows: Sequence[dict],
  config: DataConfig,
  group: GroupConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  seed: int,
) -> tuple[list[_Row], dict[str, list[int]], dict[str, int]]:
  """The rows that fit, dropped rows by reason, empty slots by reason."""
  dropped = collections.defaultdict(list)
  rows, conversations = _written(rows, config, group, tokenizer, dropped)
  prompts = encode_prompts(
    [row.get('prompt_turns') or row['prompt'] for row in rows],
    config,
    tokenizer,
  )
  # Answers that no slot takes are not worth their time.
  experts = [row['expert'] if group.experts else '' for row in rows]
  teachers = [row['teacher'] if group.teachers else [] for row in rows]
  expert_ids = _encode_answers(
    ['' if i in conversations else text for i, text in enumerate(experts)],
    tokenizer,
  )
  trained: list[np.ndarray | None] = [None] * len(rows)
  for i, answer in zip(
    conversations, chat.encode(list(conversations.values()), tokenizer)
  ):
    expert_ids[i], trained[i] = answer
  teacher_ids = iter(
    _encode_answers(list(itertools.chain(*teachers)), tokenizer)
  )
  unknown = unknown_id(tokenizer)
  fitting, empty = [], collections.Counter()
  for row, ids, expert, expert_id, trains, teacher in zip(
    rows, prompts, experts, expert_ids, trained, teachers
  ):
    offered = [(text, next(teacher_ids)) for text in teacher]
    reason = _unfit(ids, expert_id, unknown, config)
    if reason:
      dropped[reason].append(row['row'])
      continue
    given = [(expert, expert_id)] * group.experts
    given += _choose(offered, row['row'], config, group, seed, empty)
    if group.experts and not expert:
      empty['rows without an expert'] += 1
    fitting.append(
      _Row(row['row'], row['prompt'], row['answer'], ids, given, trains)
    )
  return fitting, dict(dropped), dict(empty)


def _written(
  rows: Sequence[dict],
  config: DataConfig,
  group: GroupConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  dropped: dict[str, list[int]],
) -> tuple[list[dict], dict[int, chat.Written]]:
  """Rows that can be graded and written; position -> answer of many turns."""
  graded = group.size > group.experts
  talk = next((row['row'] for row in rows if files.TURNS & row.keys()), 0)
  require(
    not talk or _uses_template(config, tokenizer),
    f'row {talk} is a conversation and needs a chat template, but'
    f' data.template={config.template} and the tokenizer'
    f' {tokenizer.name_or_path!r} has'
    f' {"one" if tokenizer.chat_template else "none"}',
  )
  call = missing_call(tokenizer) if talk else ''
  kept, conversations = [], {}
  for row in rows:
    try:
      if graded and not row['answer']:
        raise files.BadRow('without a reference answer to grade by')
      if files.TURNS & row.keys():
        asked = chat.instructed(
          row.get('prompt_turns') or chat.user(row['prompt']),
          config.instruction,
        )
        if group.experts and 'expert_turns' in row:
          conversations[len(kept)] = chat.write(
            asked, row['expert_turns'], tokenizer, call
          )
        else:
          chat.check(asked, tokenizer)
    except files.BadRow as bad:
      dropped[str(bad)].append(row['row'])
    else:
      kept.append(row)
  return kept, conversations


def _encode(
  texts: list[str], tokenizer: transformers.PreTrainedTokenizerBase
) -> Iterator[list[int]]:
  """Ids of each text.

  In parts: what the tokenizer keeps of a token is thirty times its id.
  """
  for start in range(0, len(texts), ENCODED):
    yield from tokenizer(
      texts[start : start + ENCODED],
      add_special_tokens=False,
      return_attention_mask=False,
      return_token_type_ids=False,
      verbose=False,
    )['input_ids']


def encode_prompts(
  prompts: Sequence[str | chat.Turns],
  config: DataConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> list[list[int]]:
  """Ids of the prompts in their template, with BOS once where it is used.

  A prompt is what a user says, or the turns of a conversation, which needs the
  chat template.
  """
  has_template = tokenizer.chat_template is not None
  require(
    config.template != 'chat' or has_template,
    'data.template=chat, but the tokenizer has no chat template; use plain',
  )
  messages = [
    chat.instructed(
      chat.user(prompt) if isinstance(prompt, str) else prompt,
      config.instruction,
    )
    for prompt in prompts
  ]
  if not _uses_template(config, tokenizer):
    # The BOS that the tokenizer itself would put in front, if any.
    start = tokenizer('')['input_ids'][:1]
    start = start if start == [tokenizer.bos_token_id] else []
    return [
      ids if ids[:1] == start else start + ids
      for ids in _encode(
        [turns[-1]['content'] for turns in messages], tokenizer
      )
    ]
  if not messages:
    return []  # apply_chat_template looks at the first
  # The template writes BOS where the model wants one.
  return list(_encode(chat_prompts(messages, tokenizer), tokenizer))


def encode_groups(
  prompts: list[str],
  texts: list[list[str]],
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> tuple[Ragged, Ragged]:
  """Texts of B prompts with G answers each, in the tokenizer's own template.

  Returns:
    B prompts and B G answers, an EOS behind every answer.
  """
  ids = _encode(list(itertools.chain(*texts)), tokenizer)
  return (
    Ragged(encode_prompts(prompts, DataConfig(), tokenizer)),
    Ragged([[*row, tokenizer.eos_token_id] for row in ids]),
  )


def pad_groups(
  asked: Ragged, answered: Ragged, prompt_width: int, answer_width: int
) -> tuple[Prompts, Responses]:
  """What `encode_groups` gives, as arrays; the end of longer rows is cut."""
  rows = np.arange(len(asked.length))
  tokens, length = asked.padded(rows, prompt_width)
  members = np.arange(len(answered.length)).reshape(len(rows), -1)
  given, given_length = answered.padded(members, answer_width)
  zeros = np.zeros(given.shape, np.float32)
  return (
    Prompts(tokens, length, rows.astype(np.int32)),
    Responses(given, given_length, zeros),
  )


def _uses_template(
  config: DataConfig, tokenizer: transformers.PreTrainedTokenizerBase
) -> bool:
  return config.template != 'plain' and tokenizer.chat_template is not None


def _encode_answers(
  answers: list[str], tokenizer: transformers.PreTrainedTokenizerBase
) -> list[np.ndarray]:
  """Ids with EOS; an absent answer, '', has none."""
  return [
    np.array([*ids, tokenizer.eos_token_id] if answer else [], np.int32)
    for answer, ids in zip(answers, _encode(answers, tokenizer))
  ]


def unknown_id(tokenizer: transformers.PreTrainedTokenizerBase) -> int | None:
  """The id that stands for unreadable text and for nothing else."""
  others = (
    tokenizer.bos_token_id,
    tokenizer.eos_token_id,
    tokenizer.pad_token_id,
  )
  return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


def _unfit(
  prompt: list[int],
  expert: Sequence[int],
  unknown: int | None,
  config: DataConfig,
) -> str:
  """Why a row is dropped, or ''."""
  if not prompt:
    return 'prompts without tokens'
  if unknown in prompt or unknown in expert:
    return 'with text that the tokenizer does not know'
  if len(prompt) > config.max_prompt:
    return f'prompts longer than data.max_prompt={config.max_prompt}'
  if len(expert) > config.max_response:
    return f'experts longer than data.max_response={config.max_response}'
  return ''


def _choose(
  offered: list[tuple[str, Sequence[int]]],
  row: int,
  config: DataConfig,
  group: GroupConfig,
  seed: int,
  empty: dict[str, int],
) -> list[tuple[str, Sequence[int]]]:
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


def prompts_of(examples: data.Examples) -> Prompts:
  return Prompts(
    tokens=examples.tokens, length=examples.length, index=examples.index
  )


def given_of(examples: data.Examples) -> Responses:
  """The dataset's answers; no policy of ours has sampled them."""
  return Responses(
    tokens=examples.given_tokens,
    length=examples.given_length,
    behavior_logp=np.zeros(examples.given_tokens.shape, np.float32),
    trained=examples.given_trained,
  )


def in_order(
  dataset: data.Dataset, count: int, size: int
) -> Iterator[data.Examples]:
  """The first `count` rows in order; the last batch may be smaller."""
  count = min(count, len(dataset))
  for start in range(0, count, size):
    yield dataset.examples(np.arange(start, min(start + size, count)))
