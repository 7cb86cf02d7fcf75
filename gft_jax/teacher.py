"""A dataset whose teacher answers a policy samples, written batch by batch.

Finished batches are on disk: after an interruption the same call goes on, and
the file is bit for bit that of an uninterrupted call on the same machine.
FILE.settings/ beside it says under which settings it was begun; any others are
refused.
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO, NamedTuple

import numpy as np
import tqdm

from gft_jax import data
from gft_jax.config import Config, ConfigError, overridden, override, require
from gft_jax.data import builders
from gft_jax.engine import open_engine
from gft_jax.evaluation import generations
from gft_jax.evaluation.held_out import OWN
from gft_jax.generate import answer_examples, width_of_prompts
from gft_jax.parallel.mesh import check_rows, even_rows, warn_of_idle_devices
from gft_jax.policy import Policy
from gft_jax.rewards.functions import NOTHING, TURNS
from gft_jax.rewards.grader import Grader, evaluation_reward, wanted_by
from gft_jax.rewards.tally import Tally
from gft_jax.types import Params


class Written(NamedTuple):
  """What became of a dataset and its teacher answers.

  Attributes:
    answers: teacher answers of each row, the rows of earlier calls included.
    dropped: reason -> rows of the source that are not used.
    left_out: reason -> answers of this call that may not teach.
  """

  answers: list[int]
  dropped: dict[str, int]
  left_out: dict[str, int]


def settings_for(
  config: Config,
  path: str,
  *,
  answers: int,
  max_tokens: int,
  temperature: float,
  seed: int,
) -> Config:
  """A config under every setting that decides about a teacher's answer.

  All rows of the file at `path` are used: none are held out where eval_path
  says what is.
  """
  return overridden(
    config,
    (
      *(f'data.path={path}', f'data.eval_path={path}', 'data.split=train'),
      *('data.columns=', 'data.max_prompt=1024', 'data.rows=0'),
      *('group.experts=0', 'group.teachers=0', f'group.samples={answers}'),
      f'data.max_response={max_tokens}',
      f'sampler.temperature={temperature}',
      *(f'seed={seed}', 'reward.workers=2'),
    ),
  )


def check_teacher(
  config: Config, out: pathlib.Path, keep_correct: bool
) -> None:
  """Raises ConfigError for what cannot work, before a model is loaded."""
  require(out.suffix == '.jsonl', f'--out {out} does not end in .jsonl')
  require(out.parent.is_dir(), f'--out {out}: there is no folder {out.parent}')
  check_rows('data.batch_size', config.data.batch_size, config.mesh)
  if not keep_correct and not config.reward.function:
    return
  # A wrong name is refused even where nothing is graded.
  reward = evaluation_reward(config)
  with Grader(reward) as grader:
    require(
      not keep_correct or not grader.asks_model,
      f'--keep-correct: reward.function={reward.function!r} asks a'
      ' reward model, which gives no verdict of right or wrong',
    )


def write_teacher(
  config: Config,
  policy: Policy,
  params: Params,
  out: pathlib.Path,
  keep_correct: bool = False,
) -> Written:
  """Writes each row of `config.data` with answers of the policy as teacher.

  Args:
    config: `group.samples` answers to each row, of up to `data.max_response`
      tokens, up to `data.batch_size` rows at a time.
    policy: its model and tokenizer.
    params: what answers.
    out: the file, as `check_teacher` wants it.
    keep_correct: leave out answers that evaluations count as wrong.

  Raises:
    ConfigError: rows that do not fit the model, or an `out` that was begun
      under other settings or that another process writes.
    RewardError: a reward of the user failed for every answer so far.
  """
  split = config.data.split
  graded = bool(config.reward.function)
  wanted = NOTHING
  if graded:  # For --keep-correct, and for who trains on the file.
    asked = wanted_by(evaluation_reward(config))
    wanted = wanted_by(config.reward).joined(asked)
  dataset = data.load(
    config.data, OWN, policy.tokenizer, split, config.seed, wanted
  )
  size = even_rows(len(dataset), config.data.batch_size, config.mesh)
  asking = override(config, f'data.batch_size={size}')
  longest = int(dataset.statistics.tokens['prompt'].max())
  width = width_of_prompts(policy, longest, config.data.max_response)
  source = builders.source(config.data, split, config.seed)
  rows = {row['row']: row for row in source.rows}
  facts: dict[str, int | str] = {
    '--keep-correct': keep_correct,
    'rows of --data': digest(rows.values()),
    'weights': generations.fingerprint(params),
  }
  left_out: collections.Counter[str] = collections.Counter()
  tally, told = Tally(), set[str]()
  with contextlib.ExitStack() as stack:
    # A mistake in the reward leaves nothing behind.
    grader = (
      stack.enter_context(Grader(evaluation_reward(config)))
      if keep_correct
      else None
    )
    engine = stack.enter_context(open_engine(config, policy))
    warn_of_idle_devices(config.mesh)
    file = stack.enter_context(opened(out, config, facts))
    done = drop_half_batch(file, size, len(dataset))
    for start in tqdm.trange(done, len(dataset), size, disable=None):
      stop = min(start + size, len(dataset))
      examples = dataset.examples(np.arange(start, stop))
      texts, finished = answer_examples(engine, params, examples, asking, width)
      scores = None
      if grader:
        scores = grade(grader, examples, texts, tally, told)
      threshold = config.eval.threshold
      teachers = kept(texts, finished, scores, left_out, threshold)
      columns = examples.columns or [''] * len(teachers)
      for number, teacher, taken in zip(examples.index, teachers, columns):
        file.write(line(rows[int(number)], teacher, taken))
      file.flush()
      os.fsync(file.fileno())
  lines = out.read_bytes().splitlines()
  return Written(
    [len(json.loads(text)['teacher']) for text in lines],
    {k: len(v) for k, v in dataset.statistics.dropped.items()},
    dict(left_out),
  )


def grade(
  grader: Grader,
  examples: data.Examples,
  texts: list[list[str]],
  tally: Tally,
  told: set[str],
) -> np.ndarray:
  """Rewards [B, G]; raises RewardError where all so far failed by its fault."""
  size = len(texts[0])
  scored = grader.score(
    [prompt for prompt in examples.prompts for _ in range(size)],
    [answer for answer in examples.answers for _ in range(size)],
    [text for row in texts for text in row],
    columns=[taken for taken in examples.columns for _ in range(size)],
  )
  tally.add(scored.answers, scored.failed)
  tally.check('this call', told)
  return scored.values.reshape(-1, size)


def kept(
  texts: list[list[str]],
  finished: np.ndarray,
  scores: np.ndarray | None,
  left_out: collections.Counter[str],
  threshold: float = 1.0,
) -> list[list[str]]:
  """The answers of each row that may teach; counts the others by reason.

  Args:
    texts: [B][G].
    finished: [B, G] bool, the answer ended by itself.
    scores: [B, G] rewards; None: wrong answers may teach too.
    left_out: reason -> count, added to.
    threshold: an answer is right where its reward is at least this.
  """
  teachers: list[list[str]] = [[] for _ in texts]
  right = None
  if scores is not None:
    right = generations.is_right(scores, threshold)
  for b, row in enumerate(texts):
    for g, text in enumerate(row):
      if not finished[b, g]:
        left_out['cut at --max-tokens'] += 1
      elif not text.strip():
        left_out['empty'] += 1
      elif right is not None and not right[b, g]:
        left_out['wrong'] += 1
      else:
        teachers[b].append(text)
  return teachers


def line(
  row: Mapping[str, object], teacher: list[str], columns: str = ''
) -> bytes:
  """A row of the source with these teacher answers, as a line of JSON.

  The columns that the reward takes stay, for the run that trains on it.
  """
  prompt = row.get('prompt_turns') or row['prompt']
  expert = row.get('expert_turns') or row['expert']
  entry = {'prompt': prompt, 'answer': row['answer']}
  if expert:
    entry['expert'] = expert
  entry['teacher'] = teacher
  taken = json.loads(columns) if columns else {}
  entry |= {k: v for k, v in taken.items() if k not in (*entry, TURNS)}
  return (json.dumps(entry, ensure_ascii=False) + '\n').encode()


@contextlib.contextmanager
def opened(
  out: pathlib.Path, config: Config, facts: dict[str, int | str]
) -> Iterator[BinaryIO]:
  """The output, of one process at a time, under the settings it began with.

  Raises:
    ConfigError: another process writes it, or it was begun under others.
  """
  settings = pathlib.Path(f'{out}.settings')
  require(
    settings.exists() or not out.exists(),
    f'--out {out} exists, and {settings.name} is not beside it: of another'
    ' origin; name a new file',
  )
  generations.check_settings(settings, config, facts)
  with out.open('a+b') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ConfigError(f'--out {out}: another process writes it') from None
    yield file


def drop_half_batch(file: BinaryIO, size: int, total: int) -> int:
  """Cuts off what a killed process left of a batch; the rows that stay."""
  file.seek(0)
  lines = [text for text in file if text.endswith(b'\n')]
  rows = len(lines) if len(lines) >= total else len(lines) // size * size
  file.truncate(sum(map(len, lines[:rows])))
  return rows


def digest(rows: Iterable[Mapping[str, object]]) -> str:
  found = hashlib.sha256()
  for row in rows:
    found.update(json.dumps(row).encode())
  return found.hexdigest()[:16]
