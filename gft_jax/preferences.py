"""Pairs of answers, one preferred -> a reward model (Bradley-Terry).

A pair is a group of two, the chosen answer before the rejected one, so that its
prompt is computed once. What comes out is a Hugging Face folder of a sequence
classifier, which `reward.model` names.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import operator
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax.training.train_state import TrainState
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from gft_jax import huggingface, programs
from gft_jax.batch import GroupBatch
from gft_jax.config import Config, require, user_path
from gft_jax.data import files, pipeline, turns
from gft_jax.models import reward_model
from gft_jax.models.transformer import Transformer
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import check_divisible, even_rows, make_mesh
from gft_jax.policy import Policy, key_of, load_policy, source_of
from gft_jax.rollout import groups
from gft_jax.run import checkpoint, compiler, writers
from gft_jax.run.workdir import check_workdir, claim, local_folder
from gft_jax.training import train_step
from gft_jax.training.metrics import Metrics, check_finite
from gft_jax.types import Json, Numbers, Params, Tree

# Pairs held out: a tenth, at most.
MOST_HELD_OUT = 256
STAGE = 'reward_model'


class Pair(NamedTuple):
  prompt: str
  chosen: str
  rejected: str


def read_pairs(path: str | pathlib.Path) -> list[Pair]:
  """Pairs of a file with the columns prompt, chosen and rejected.

  They are texts, or turns of one question and one answer; chosen and rejected
  may then hold the question, too, in place of prompt.

  Or answers that an evaluation has kept: of each prompt the best with the
  worst, the second best with the second worst, while their rewards differ.

  Raises:
    ConfigError: no such file, a bad row (names it), or no pair.
  """
  path = user_path(path)
  files.check_exists(path)
  rows, kept = [], False
  for number, row in files.raw_rows(path):
    if number == 1:
      kept = isinstance(row, dict) and 'reward' in row
    fault = _fault(row, kept)
    require(not fault, f'{path}: row {number} {fault}')
    rows.append(row)
  if kept:
    pairs = _of_kept(rows)
  else:
    pairs = [Pair(*(row[name] for name in Pair._fields)) for row in rows]
  require(bool(pairs), f'{path} has no pair of a better and a worse answer')
  return pairs


class Task(NamedTuple):
  """What a reward model is trained on.

  Attributes:
    config: of the training.
    workdir: of this training alone.
    model: a decoder whose head is not used.
    mesh: of the devices.
    pairs: groups of two to train on.
    held_out: groups of two to evaluate on.
    steps: in all.
  """

  config: Config
  workdir: pathlib.Path
  model: Transformer
  mesh: Mesh
  pairs: GroupBatch
  held_out: GroupBatch
  steps: int


def train_reward_model(
  config: Config, pairs: list[Pair], workdir: str | pathlib.Path, epochs: int
) -> Numbers:
  """Trains, or goes on training, a reward model from a policy.

  Afterwards `workdir` holds config.json, metrics.jsonl, checkpoints/ and
  model/, the Hugging Face folder. A tenth of the pairs is held out, whole
  prompts of it.

  Args:
    config: its model, data (lengths, template, batch_size), optimizer,
      checkpoint, log, mesh and seed are used.
    pairs: of `read_pairs`.
    workdir: of this training alone.
    epochs: how often each pair is seen.

  Returns:
    'eval/accuracy', 'eval/loss' and 'eval/margin' on the held-out pairs;
    'pairs' that are used and those that are 'too_long', which may be up to
    data.max_dropped of all.

  Raises:
    ConfigError: a setting that cannot work, too few pairs that fit, or a
      workdir begun under another config.
  """
  compiler.return_freed_memory()
  _check(config)
  workdir = local_folder(workdir)
  check_workdir(workdir, config)
  writers.check_writers(config.log)
  policy = load_policy(config)
  seen, held_out = _split(pairs)
  require(bool(seen), 'all pairs have one prompt, and one must be held out')
  train_set = encode(seen, config, policy.tokenizer)
  test_set = encode(held_out, config, policy.tokenizer)
  count = len(train_set.rewards)
  fitting = count + len(test_set.rewards)
  _check_sizes(config, policy, len(pairs), fitting, count)

  # The head of the policy is not the model's own.
  architecture = dataclasses.replace(policy.model.architecture, tied_head=True)
  task = Task(
    config,
    workdir,
    policy.model.clone(architecture=architecture),
    make_mesh(config.mesh),
    train_set,
    test_set,
    steps=epochs * (count // config.data.batch_size),
  )
  state = _fresh_state(task, policy.params)
  with contextlib.ExitStack() as stack:
    stack.enter_context(claim(workdir, config))
    writer = stack.enter_context(
      contextlib.closing(writers.make_writer(workdir, config.log))
    )
    state, evaluation = _run(task, state, writer)
  huggingface.save(
    workdir / 'model',
    task.model,
    state.params,
    policy.tokenizer,
    source=source_of(config.model.path),
  )
  return evaluation | {'pairs': fitting, 'too_long': len(pairs) - fitting}


def _check(config: Config) -> None:
  """Refuses settings that this training has no use for."""
  for name, value, only in (
    ('model.lora.rank', config.model.lora.rank, 0),
    ('optimizer.mini_batches', config.optimizer.mini_batches, 1),
    ('optimizer.micro_batches', config.optimizer.micro_batches, 1),
    # reward.model is asked in the tokenizer's own template.
    ('data.template', config.data.template, 'auto'),
    ('data.instruction', config.data.instruction, ''),
    ('data.system', config.data.system, ''),
    ('checkpoint.best', config.checkpoint.best, ''),
    ('log.profile', config.log.profile, ''),
  ):
    require(
      value == only,
      f'{name}={value!r}: a reward model is trained with {only!r}',
    )


def _check_sizes(
  config: Config, policy: Policy, pairs: int, fitting: int, seen: int
) -> None:
  """Refuses lengths that the model lacks, and too few pairs that fit them."""
  settings = config.data
  check_divisible(settings.batch_size, config.mesh)
  longest = settings.max_prompt + settings.max_response
  room = policy.model.architecture.max_positions
  require(
    longest <= room,
    f'data.max_prompt and data.max_response make {longest} tokens, but the model'
    f' has max_positions={room}',
  )
  require(
    pairs - fitting <= settings.max_dropped * pairs,
    f'{pairs - fitting} of {pairs} pairs exceed data.max_prompt='
    f'{settings.max_prompt} or data.max_response={settings.max_response},'
    f' more than data.max_dropped={settings.max_dropped} allows',
  )
  require(
    seen >= settings.batch_size and seen < fitting,
    f'of {fitting} pairs {seen} are to train on; data.batch_size='
    f'{settings.batch_size} needs more, and one must be held out',
  )


def _fresh_state(task: Task, params: Params) -> TrainState:
  """The parameters of the policy, and a new score, on the mesh."""
  config = task.config
  start = reward_model.init(key_of(config.seed, 'init', 0), params)
  optimizer = programs.optimizer_of(config.optimizer, task.steps)
  return sharding.create_sharded(
    lambda params: train_step.create_state(task.model, params, optimizer),
    start,
    task.mesh,
  )


def _run(
  task: Task, state: TrainState, writer: writers.Writer
) -> tuple[TrainState, Numbers]:
  """The steps that are not done; the last state and its evaluation."""
  settings, pairs = task.config.checkpoint, task.pairs
  directory = task.workdir / 'checkpoints'
  begun = f'{task.steps} steps on the pairs {_digest(pairs)}'
  done, valid_bytes, evaluation = 0, 0, {}
  restored = checkpoint.restore(directory, state)
  if restored:
    done, state, position = restored
    require(
      position['begun'] == begun,
      f'{task.workdir} was begun with {position["begun"]}, not {begun}; use a'
      ' new workdir',
    )
    valid_bytes, evaluation = position['metrics_bytes'], position['evaluation']
  writer.begin(STAGE, task.steps, done, valid_bytes)
  order = _order(len(pairs.rewards), task.config, task.steps)
  for step, rows in enumerate(order, 1):
    if step <= done:
      continue
    batch = sharding.to_global(task.mesh, _rows(pairs, rows))
    with jax.set_mesh(task.mesh), programs.precise(task.model.dtype):
      state, metrics = programs.update_reward_model(
        state, batch, model=task.model
      )
    head = {'stage': STAGE, 'step': step}
    numbers = _floats('train', [metrics])
    check_finite(STAGE, step, numbers, ('train/loss',))
    writer.write(head | numbers)
    if step == task.steps or step % settings.every == 0:
      evaluation = _evaluate(task, state.params)
      writer.write(head | evaluation)
      position = {
        'begun': begun,
        'metrics_bytes': writer.position(),
        'evaluation': evaluation,
      }
      checkpoint.save(directory, step, state, position, keep=settings.keep)
  return state, evaluation


def encode(
  pairs: list[Pair], config: Config, tokenizer: PreTrainedTokenizerBase
) -> GroupBatch:
  """Groups [n, 2] of the pairs whose prompt and answers fit."""
  most = config.data.max_prompt, config.data.max_response
  prompts, responses = pipeline.pad_groups(
    *pipeline.encode_groups(
      [pair.prompt for pair in pairs],
      [[pair.chosen, pair.rejected] for pair in pairs],
      tokenizer,
    ),
    *most,
  )
  fits = (prompts.length <= most[0]) & np.all(
    responses.length <= most[1], axis=1
  )
  prompts, responses = jax.tree.map(lambda x: x[fits], (prompts, responses))
  return groups.unscored(prompts, responses, int(fits.sum()))


def _fault(row: Json | files.BadRow, kept: bool) -> str:
  """Why a row is neither a pair nor, with `kept`, an answer; '' where it is."""
  if isinstance(row, files.BadRow):
    return str(row)
  try:
    row |= {} if kept else _texts_of_turns(row)
  except files.BadRow as bad:
    return str(bad)
  for name in ('prompt', 'response') if kept else Pair._fields:
    if name not in row:
      return f'has no column {name!r}; a pair has {", ".join(Pair._fields)}'
    if name == 'response' and row[name] in ('', b''):
      row[name] = ''  # An answer that stopped at once.
      continue
    try:
      row[name] = files.text_of(name, row[name])
    except files.BadRow as bad:
      return str(bad)
  reward = row.get('reward')
  if kept and not (isinstance(reward, float | int) and math.isfinite(reward)):
    return f'has the reward {reward!r}, which is no finite number'
  if not kept and row['chosen'] == row['rejected']:
    return 'has the same text chosen and rejected'
  return ''


def _texts_of_turns(row: Json) -> Json:
  """A pair of conversations as texts; {} where its sides are none.

  Raises:
    BadRow: there is more in it than one question and two answers.
  """
  sides = [
    turns.conversation(name, found)
    for name in ('chosen', 'rejected')
    if (found := turns.turns_in(name, row.get(name))) is not None
  ]
  if len(sides) < 2:
    return {}
  asked = turns.turns_in('prompt', row.get('prompt'))
  if asked is not None:
    asked = turns.conversation('prompt', asked)
  elif row.get('prompt') is None:
    asked, _ = turns.split_at_difference(*sides)
  else:
    content = files.text_of('prompt', row['prompt'])
    asked = [turns.Turn(role='user', content=content)]
  said = [
    side[len(asked) :] if side[: len(asked)] == asked else side
    for side in sides
  ]
  speakers = ('user', 'assistant', 'assistant')
  for part, speaker in zip((asked, *said), speakers):
    if not part or turns.needs_template(part, speaker):
      raise files.BadRow(
        'is a conversation; a pair is one question of a user and two answers'
      )
  texts = [str(part[0]['content']) for part in (asked, *said)]
  return dict(zip(Pair._fields, texts))


def _of_kept(rows: list[Json]) -> list[Pair]:
  answers: dict[str, dict[str, float]] = {}
  for row in rows:
    by_text = answers.setdefault(row['prompt'], {})
    by_text[row['response']] = row['reward']
  pairs = []
  for prompt, rewards in answers.items():
    ranked = sorted(rewards, key=lambda text: rewards[text], reverse=True)
    for best, worst in zip(ranked[: len(ranked) // 2], reversed(ranked)):
      if rewards[best] > rewards[worst]:
        pairs.append(Pair(prompt, best, worst))
  return pairs


def _split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
  """Those to train on and those held out; no prompt stands in both."""
  prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
  count = max(1, min(len(prompts) // 10, MOST_HELD_OUT))
  out = set(prompts[-count:])
  return (
    [pair for pair in pairs if pair.prompt not in out],
    [pair for pair in pairs if pair.prompt in out],
  )


def _order(count: int, config: Config, steps: int) -> Iterator[np.ndarray]:
  """Rows of each step, which depend on the seed and the step alone."""
  size, order = config.data.batch_size, np.empty(0, int)
  for step in range(steps):
    epoch, batch = divmod(step, count // size)
    if batch == 0:
      generator = np.random.Generator(np.random.PCG64([config.seed, epoch]))
      order = generator.permutation(count)
    yield order[batch * size : (batch + 1) * size]


def _evaluate(task: Task, params: Params) -> Numbers:
  pairs, found = task.held_out, []
  most, mesh = task.config.data.batch_size, task.config.mesh
  size = even_rows(len(pairs.rewards), most, mesh)
  for start in range(0, len(pairs.rewards), size):
    part = _rows(pairs, slice(start, start + size))
    part = groups.unscored(part.prompts, part.responses, size)
    part = sharding.to_global(task.mesh, part)
    with jax.set_mesh(task.mesh), programs.precise(task.model.dtype):
      found.append(programs.compare_pairs(task.model, params, part))
  return _floats('eval', found)


def _floats(group: str, parts: list[Metrics]) -> Numbers:
  return {
    f'{group}/{name}': float(
      functools.reduce(operator.add, (part[name] for part in parts)).value
    )
    for name in parts[0]
  }


def _digest(pairs: GroupBatch) -> str:
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves((pairs.prompts, pairs.responses)):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def _rows(tree: Tree, rows: np.ndarray | slice) -> Tree:
  return jax.tree.map(lambda x: x[rows], tree)
