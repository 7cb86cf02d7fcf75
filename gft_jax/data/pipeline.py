"""Rows -> a tokenised split; what does not fit is dropped and counted."""

import collections
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import transformers

from gft_jax.batch import Prompts, Responses
from gft_jax.config import DataConfig, GroupConfig, require
from gft_jax.data import builders, carried, chat, files
from gft_jax.data.dataset import Dataset, Examples, Ids, Ragged, Row
from gft_jax.huggingface.tokenizer import chat_prompts, missing_call
from gft_jax.rewards.functions import NOTHING, Wanted

# Widths of what `encode_groups` encodes.
MULTIPLE = 64


# Texts that are tokenised together.
ENCODED = 4096


def load(
  config: DataConfig,
  group: GroupConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  split: str,
  seed: int = 0,
  wanted: Wanted = NOTHING,
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
    wanted: columns that the reward takes.

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
  return Dataset(
    source.name,
    rows,
    dropped,
    empty_slots,
    config,
    group,
    carried.columns(source, wanted, [row.index for row in rows]),
    required=bool(wanted.required),
  )


def _fit(
  rows: Sequence[dict],
  config: DataConfig,
  group: GroupConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  seed: int,
) -> tuple[list[Row], dict[str, list[int]], dict[str, int]]:
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
    offered: list[tuple[str, Ids]] = [
      (text, next(teacher_ids)) for text in teacher
    ]
    reason = _unfit(ids, expert_id, unknown, config)
    if reason:
      dropped[reason].append(row['row'])
      continue
    given = [(expert, expert_id)] * group.experts
    given += _choose(offered, row['row'], config, group, seed, empty)
    if group.experts and not expert:
      empty['rows without an expert'] += 1
    fitting.append(
      Row(row['row'], row['prompt'], row['answer'], ids, given, trains)
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
  prompts: Sequence[str],
  texts: Sequence[Sequence[str]],
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
  expert: Ids,
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
  offered: list[tuple[str, Ids]],
  row: int,
  config: DataConfig,
  group: GroupConfig,
  seed: int,
  empty: dict[str, int],
) -> list[tuple[str, Ids]]:
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


def prompts_of(examples: Examples) -> Prompts:
  return Prompts(
    tokens=examples.tokens, length=examples.length, index=examples.index
  )


def given_of(examples: Examples) -> Responses:
  """The dataset's answers; no policy of ours has sampled them."""
  return Responses(
    tokens=examples.given_tokens,
    length=examples.given_length,
    behavior_logp=np.zeros(examples.given_tokens.shape, np.float32),
    trained=examples.given_trained,
  )


def in_order(dataset: Dataset, count: int, size: int) -> Iterator[Examples]:
  """The first `count` rows in order; the last batch may be smaller."""
  count = min(count, len(dataset))
  for start in range(0, count, size):
    yield dataset.examples(np.arange(start, min(start + size, count)))
