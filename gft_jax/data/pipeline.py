"""Rows -> a tokenised split; what does not fit is dropped and counted."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import transformers

from gft_jax.batch import Prompts, Responses
from gft_jax.config import ConfigError, DataConfig, GroupConfig, require
from gft_jax.data import builders, carried, chat, files
from gft_jax.data.chat import Written, unknown_id
from gft_jax.data.dataset import Dataset, Examples, Ids, Losses, Ragged, Row
from gft_jax.data.encoding import encode_answers, encode_texts
from gft_jax.rewards.functions import NOTHING, Wanted

ESCAPED_ROWS = 'special tokens are read as ordinary text'
OWN_SYSTEM = 'a system turn of their own stands in place of data.system'

# Why a row is dropped where answers are graded, and what to do about it.
NO_ANSWER = 'without a reference answer to grade by'
NO_ANSWER_HELPS = (
  '; name its column with data.columns=answer=NAME, or imitate the experts alone'
  ' with group.teachers=0 group.samples=0'
)


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
  rows, losses = _fit(source.rows[:total], config, group, tokenizer, seed)
  lost = total - len(rows)
  reasons = ', '.join(f'{len(n)} {why}' for why, n in losses.dropped.items())
  share = f', a share of {lost / total:.2f} above data.max_dropped={config.max_dropped}'
  require(
    lost <= config.max_dropped * total and lost < total,
    f'{source.name}: {lost} of {total} rows are dropped ({reasons})'
    + (share if lost < total else ', and none is left')
    + (NO_ANSWER_HELPS if NO_ANSWER in losses.dropped else ''),
  )
  dropped = {**source.dropped, **losses.dropped}
  losses = dataclasses.replace(
    losses, dropped=dropped, left_out=source.left_out
  )
  return Dataset(
    source.name,
    rows,
    losses,
    config,
    group,
    carried.columns(source, wanted, [row.index for row in rows]),
    required=bool(wanted.required),
  )


class _Texts(NamedTuple):
  """A row as it is encoded; see chat.Writer."""

  row: dict
  prompt: str
  expert: Written | None
  teachers: list[Written]


def _fit(
  rows: Sequence[dict],
  config: DataConfig,
  group: GroupConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  seed: int,
) -> tuple[list[Row], Losses]:
  """The rows that fit, and what became of the others."""
  losses = Losses({}, {}, {})
  writer = _writer(rows, config, tokenizer)
  texts = list(_written(rows, writer, group, losses, config.system))
  prompts = _prompt_ids([text.prompt for text in texts], writer)
  experts = encode_answers([text.expert for text in texts], writer)
  teachers = encode_answers(
    [*itertools.chain(*(text.teachers for text in texts))], writer
  )
  unknown = unknown_id(tokenizer)
  fitting = []
  for text, ids, (expert_ids, trains) in zip(texts, prompts, experts):
    row, expert = text.row, text.expert
    offered: list[tuple[str, Ids]] = [
      (teacher.graded, next(teachers)[0]) for teacher in text.teachers
    ]
    reason = _unfit(ids, expert_ids, unknown, config)
    if reason:
      losses.drop(reason, row['row'])
      continue
    given: list[tuple[str, Ids]] = []
    if group.experts:
      given = [(expert.graded if expert else '', expert_ids)]
      if not expert:
        losses.leave_empty('rows without an expert')
    given += _choose(offered, row['row'], config, group, seed, losses)
    fitting.append(
      Row(row['row'], row['prompt'], row['answer'], ids, given, trains)
    )
  return fitting, losses


def _writer(
  rows: Sequence[dict],
  config: DataConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> chat.Writer:
  """Raises ConfigError where conversations have no chat template."""
  talk = next((row['row'] for row in rows if files.TURNS & row.keys()), 0)
  template = tokenizer.chat_template
  require(
    not talk or (config.template != 'plain' and template is not None),
    f'row {talk} is a conversation and needs a chat template, but'
    f' data.template={config.template} and the tokenizer'
    f' {tokenizer.name_or_path!r} has {"one" if template else "none"}; a'
    ' tokenizer that has one comes with model.path, or with --tokenizer of'
    ' prepare_data.py',
  )
  return chat.Writer(config, tokenizer)


def _written(
  rows: Sequence[dict],
  writer: chat.Writer,
  group: GroupConfig,
  losses: Losses,
  system: str,
) -> Iterator[_Texts]:
  """Rows that can be graded and written; the others are counted."""
  graded = group.size > group.experts
  for row in rows:
    number, tools = row['row'], row.get('tools')
    try:
      if graded and not row['answer']:
        raise files.BadRow(NO_ANSWER)
      asked = writer.asked(row.get('prompt_turns') or row['prompt'])
      prompt = writer.prompt(asked, tools)
      expert = None
      # Answers that no slot takes are not worth their time.
      if group.experts and row['expert']:
        said = row.get('expert_turns') or row['expert']
        expert = writer.answer(asked, said, prompt, tools)
    except files.BadRow as bad:
      losses.drop(str(bad), number)
      continue
    teachers = []
    for text in row['teacher'] if group.teachers else []:
      try:
        teachers.append(writer.answer(asked, text, prompt, tools))
      except files.BadRow as bad:
        losses.leave_empty(f'teachers {bad}')
    if expert is not None and not expert.graded.strip():
      expert = None
    teachers = [teacher for teacher in teachers if teacher.graded.strip()]
    answers = [*teachers, expert] if expert else teachers
    spoken = [t['content'] for t in asked if t['role'] == 'system']
    if system and [chat.unescaped(text) for text in spoken] != [system]:
      losses.note(OWN_SYSTEM, number)
    for note in {answer.note for answer in answers} - {''}:
      losses.note(note, number)
    if any(
      chat.ESCAPE in text for text in (prompt, *(a.text for a in answers))
    ):
      losses.note(ESCAPED_ROWS, number)
    yield _Texts(row, prompt, expert, teachers)


def encode_prompts(
  prompts: Sequence[str | chat.Turns],
  config: DataConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> list[list[int]]:
  """Ids of the prompts in their template, with BOS once where it is used.

  A prompt is what a user says, or the turns of a conversation, which needs the
  chat template. None is dropped: special tokens in it are read as ordinary
  text, unless data.special_tokens keeps them.

  Raises:
    ConfigError: a prompt that the chat template refuses, or as chat.Writer.
  """
  if config.special_tokens == 'drop':
    config = dataclasses.replace(config, special_tokens='escape')
  writer = chat.Writer(config, tokenizer)
  try:
    texts = [writer.prompt(writer.asked(prompt)) for prompt in prompts]
  except files.BadRow as bad:
    raise ConfigError(f'a prompt {bad}; see data.template') from None
  return _prompt_ids(texts, writer)


def _prompt_ids(texts: Sequence[str], writer: chat.Writer) -> list[list[int]]:
  """Ids of prompts as text; BOS is the template's, or else the tokenizer's."""
  tokenizer = writer.tokenizer
  found = list(encode_texts(texts, tokenizer))
  if writer.is_chat:
    return found
  # The BOS that the tokenizer itself would put in front, if any.
  start = tokenizer('')['input_ids'][:1]
  start = start if start == [tokenizer.bos_token_id] else []
  return [ids if ids[:1] == start else start + ids for ids in found]


def encode_groups(
  prompts: Sequence[str],
  texts: Sequence[Sequence[str]],
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> tuple[Ragged, Ragged]:
  """Texts of B prompts with G answers each, in the tokenizer's own template.

  Special tokens in them are read as ordinary text. An answer that the template
  does not write, as one that was cut in its thoughts, stands as it is.

  Returns:
    B prompts and B G answers, what ends an answer behind every one.
  """
  writer = chat.Writer(DataConfig(special_tokens='escape'), tokenizer)
  asked_texts, answers = [], []
  for prompt, members in zip(prompts, texts):
    asked = writer.asked(prompt)
    text = writer.prompt(asked)
    asked_texts.append(text)
    for member in members:
      try:
        answers.append(writer.answer(asked, member, text))
      except files.BadRow:
        answers.append(writer.plain(member, text))
  return (
    Ragged(_prompt_ids(asked_texts, writer)),
    Ragged([ids for ids, _ in encode_answers(answers, writer)]),
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
  losses: Losses,
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
    losses.leave_empty(reason, too_long)
  if missing > too_long:
    losses.leave_empty('fewer teachers than group.teachers', missing - too_long)
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
