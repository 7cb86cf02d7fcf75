"""Public benchmarks: every question asked, answers kept, graded, counted.

An interrupted benchmark goes on after its last whole batch, and its answers are
those of an uninterrupted one, bit for bit.
"""

import dataclasses
import fcntl
import logging
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import tqdm

from gft_jax.batch import Prompts
from gft_jax.config import Config, require
from gft_jax.engine import Engine
from gft_jax.evaluation.generations import (
  Answers,
  accuracy,
  lines_of,
  read_answers,
  shortened,
  votes_of,
)
from gft_jax.parallel.mesh import even_rows
from gft_jax.rewards.grader import Problems, evaluation_reward
from gft_jax.rewards.tally import Tally
from gft_jax.rollout import groups
from gft_jax.run.files import write_whole
from gft_jax.types import Numbers, Params, Tree


class Questions(NamedTuple):
  """A public benchmark.

  Attributes:
    name: its name.
    prompts: B texts.
    answers: B reference answers.
    ids: B sequences of token ids, the prompts in their template.
    asked: [A] int, positions of the questions that can be asked, the longest
      first: those of a batch then have about one length, and a batch that does
      not fit the memory is the first.
  """

  name: str
  prompts: Sequence[str]
  answers: Sequence[str]
  ids: Sequence[Sequence[int]]
  asked: np.ndarray


def questions_of(
  name: str,
  rows: Sequence[Mapping[str, str]],
  ids: Sequence[Sequence[int]],
  most: int,
  max_dropped: float,
) -> Questions:
  """The rows of a benchmark as questions.

  A question that has more than `most` tokens, or text that the tokenizer does
  not know, is not asked, and a warning names it. It counts as answered with '',
  so that no denominator shrinks.

  Args:
    name: of the benchmark.
    rows: each with `prompt` and `answer`, of data.benchmarks.
    ids: the prompts in their template; empty where a text is not known.
    most: tokens of a question.
    max_dropped: largest share of questions that are not asked.

  Raises:
    ConfigError: more than that cannot be asked.
  """
  length = np.array([len(tokens) for tokens in ids])
  fits = (length > 0) & (length <= most)
  if not fits.all():
    out = [str(i) for i in np.flatnonzero(~fits)]
    sentence = (
      f'{name}: {len(out)} of {len(rows)} questions cannot be asked, for they'
      f' have more than {most} tokens, or text that the tokenizer does not know:'
      f' problems {shortened(out)}'
    )
    require(
      len(out) <= max_dropped * len(rows),
      f'{sentence}; that is a share above data.max_dropped={max_dropped}; see'
      ' data.max_prompt and data.instruction',
    )
    logging.warning('%s; they count as wrong', sentence)
  order = np.argsort(-length, kind='stable')
  return Questions(
    name=name,
    prompts=[row['prompt'] for row in rows],
    answers=[row['answer'] for row in rows],
    ids=ids,
    asked=order[fits[order]],
  )


def ask_benchmark(
  engine: Engine,
  params: Params,
  questions: Questions,
  config: Config,
  folder: pathlib.Path,
) -> Numbers:
  """Asks every question, or those that are left, and grades the answers.

  `folder`/NAME.partial grows by whole batches, so an interrupted evaluation goes
  on after the last one. What is asked together depends on the settings alone
  and the random bits on (seed, problem, member): the answers are those of an
  uninterrupted evaluation, bit for bit. When there are all of them, they are
  graded and become NAME.jsonl in the order of the problems. Where that file
  exists nothing is asked; `check_settings` says whether the settings are still the same.

  Args:
    engine: of the run.
    params: the policy.
    questions: the benchmark.
    config: its `data.max_prompt`, `eval`, `sampler`, `reward` and `log` are used.
    folder: for the answers.

  Returns:
    'problems', 'not_asked', what `accuracy` gives, and 'reward_failures/CAUSE'.

  Raises:
    ConfigError: NAME.jsonl does not hold answers to all problems.
    RewardError: a reward of the user failed for every answer, which stay in
      NAME.partial.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'{questions.name}.jsonl'
  partial = path.with_suffix('.partial')
  if path.exists():
    kept = read_answers(path)
    require(
      len(kept.index) == len(questions.ids),
      f'{path} has answers to {len(kept.index)} problems of'
      f' {len(questions.ids)}; it was changed: remove it',
    )
  else:
    _ask(engine, params, questions, config, partial)
    kept = _in_order(read_answers(partial, graded=False), questions)
  require(
    kept.finished.shape[1] == config.eval.samples,
    f'{path} has {kept.finished.shape[1]} answers to a problem, not'
    f' {config.eval.samples}; it was changed: remove it',
  )
  reward = evaluation_reward(config)
  scored = engine.score(
    reward,
    questions.name,
    Problems(kept.prompts, kept.answers),
    kept.responses,
    np.ones_like(kept.finished),
    kept.finished,
  )
  tally = Tally()
  tally.add(scored.answers, scored.failed)
  tally.check(f'benchmark {questions.name}', engine.told)
  kept = kept._replace(rewards=scored.values)
  write_whole(path, ''.join(lines_of(kept)))
  partial.unlink(missing_ok=True)
  metrics = {
    'problems': len(questions.ids),
    'not_asked': len(questions.ids) - len(questions.asked),
  }
  metrics |= accuracy(
    scored.values,
    config.eval.ks,
    votes_of(kept, reward.function),
    threshold=config.eval.threshold,
  )
  return metrics | {
    f'reward_failures/{k}': v for k, v in scored.failures.items()
  }


def _ask(
  engine: Engine,
  params: Params,
  questions: Questions,
  config: Config,
  path: pathlib.Path,
) -> None:
  """Writes the answers to `path` in the order of the asking.

  Whole batches that are there already are not asked again.
  """
  settings = config.eval
  sampling = dataclasses.replace(
    config.sampler, temperature=settings.temperature
  )
  room = engine.model.architecture.max_positions
  key = engine.key('evaluate', 0)
  asked = questions.asked
  size = even_rows(len(asked), settings.batch_size, config.mesh)
  parts = [asked[i : i + size] for i in range(0, len(asked), size)]
  done = _keep_whole(path, [len(part) * settings.samples for part in parts])
  bar = tqdm.tqdm(
    total=len(asked),
    initial=sum(map(len, parts[:done])),
    desc=questions.name,
    unit='question',
    file=sys.stderr,
    disable=not (config.log.progress and sys.stderr.isatty()),
  )
  with path.open('a') as file, bar:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      require(False, f'{path} is in use by another evaluation')
    for part in parts[done:]:
      ids = [questions.ids[i] for i in part]
      width = groups.width_of(len(ids[0]), config.data.max_prompt)
      length = np.array([len(row) for row in ids], np.int32)
      prompts = Prompts(
        tokens=np.array([[*x, *[0] * (width - len(x))] for x in ids], np.int32),
        length=length,
        index=part.astype(np.int32),
      )
      limit = np.ones(size, np.int32)  # For the rows that nobody has asked for.
      limit[: len(part)] = np.minimum(settings.max_response, room - length)
      prompts = groups.pad_rows(prompts, size).replace(limit=limit)
      responses = engine.sample(
        params,
        prompts,
        key,
        sampling,
        settings.samples,
        min(settings.max_response, room - 1),
      )
      texts, finished = engine.decode(
        _rows(responses, len(part)), sampling, prompts
      )
      given = [questions.prompts[i] for i in part]
      expected = [questions.answers[i] for i in part]
      answers = Answers(part, given, expected, texts, finished, None)
      file.write(''.join(lines_of(answers)))
      file.flush()
      bar.update(len(part))


def _keep_whole(path: pathlib.Path, sizes: Sequence[int]) -> int:
  """Cuts a file back to whole batches of `sizes` lines; returns how many."""
  if not path.exists():
    return 0
  lines = path.read_bytes().splitlines(keepends=True)
  if lines and not lines[-1].endswith(b'\n'):
    lines.pop()
  ends = np.cumsum(sizes)
  done = int(np.searchsorted(ends, len(lines), side='right'))
  with path.open('r+b') as file:
    file.truncate(sum(map(len, lines[: ends[done - 1] if done else 0])))
  return done


def _in_order(kept: Answers, questions: Questions) -> Answers:
  """All problems by their number; those that were not asked got ''."""
  samples = kept.finished.shape[1]
  row = {int(i): b for b, i in enumerate(kept.index)}
  silence = [''] * samples
  finished = np.zeros((len(questions.ids), samples), bool)
  finished[kept.index] = kept.finished
  return Answers(
    index=np.arange(len(questions.ids)),
    prompts=questions.prompts,
    answers=questions.answers,
    responses=[
      kept.responses[row[i]] if i in row else silence
      for i in range(len(questions.ids))
    ],
    finished=finished,
    rewards=None,
  )


def _rows(tree: Tree, count: int) -> Tree:
  return jax.tree.map(lambda x: x[:count], tree)
