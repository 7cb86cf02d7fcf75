"""Writes a dataset whose teacher answers any loaded model samples.

  python experiments/generate_teacher.py --model FOLDER --data FILE \\
    --answers 8 --temperature 0.7 --max-tokens 1024 --out TEACHER.jsonl
  python experiments/train.py ... --set data.path=TEACHER.jsonl

Each row of --data comes out with its prompt, answer and expert, and as teacher
the model's answers in place of any that it had. An answer that never stopped
is left out, and so is an empty one, and under --keep-correct one that scores
below 1 (--set reward.function=math); a row may end up without a teacher. Rows
with a prompt above data.max_prompt, or that cannot be read, are dropped and
counted; prepare_data.py names them.

Finished batches (data.batch_size) are on disk: after an interruption the same
command continues, and the file is bit for bit that of an uninterrupted run on
the same machine. TEACHER.jsonl.settings/ beside it says under which settings:
under any others the same --out is refused.
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import command

from gft_jax.config import Config, ConfigError, require

# The prompts of all batches are as wide as the longest, rounded up to this.
MULTIPLE = 32


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  command.add_model(parser)
  parser.add_argument('--data', required=True, help='as data.path')
  parser.add_argument('--out', required=True, metavar='FILE.jsonl')
  parser.add_argument('--answers', type=int, default=8, help='per prompt')
  parser.add_argument(
    '--temperature', type=float, default=1.0, help='0: greedy'
  )
  parser.add_argument('--max-tokens', type=int, default=1024)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
    '--keep-correct', action='store_true', help='leave wrong answers out'
  )
  command.add_set(parser, 'overrides one setting; may be repeated')
  options = parser.parse_args(arguments)
  return command.run(lambda: generate(options))


def settings_of(options) -> Config:
  """Every setting that decides about an answer; --set wins over the flags."""
  flags = (
    # All rows of a file: none are held out where eval_path says what is.
    *(f'data.path={options.data}', f'data.eval_path={options.data}'),
    *('data.split=train', 'data.columns=', 'data.max_prompt=1024'),
    'data.rows=0',
    *('group.experts=0', 'group.teachers=0'),
    f'group.samples={options.answers}',
    f'data.max_response={options.max_tokens}',
    f'sampler.temperature={options.temperature}',
    f'seed={options.seed}',
    'reward.workers=2',
  )
  config = command.model_config(options)
  return command.overridden(config, (*flags, *options.set))


def generate(options) -> None:
  import numpy as np
  import tqdm

  from gft_jax import data
  from gft_jax.data import builders
  from gft_jax.engine import open_engine
  from gft_jax.evaluation import generations
  from gft_jax.evaluation.held_out import OWN
  from gft_jax.parallel.mesh import check_rows
  from gft_jax.rewards.grader import Grader

  config, out = settings_of(options), pathlib.Path(options.out)
  require(out.suffix == '.jsonl', f'--out {out} does not end in .jsonl')
  require(out.parent.is_dir(), f'--out {out}: there is no folder {out.parent}')
  command.check_writable('--out', out.parent)
  command.check_rewards(config, options.workdir, options.set)
  split, size = config.data.split, config.data.batch_size
  check_rows('data.batch_size', size, config.mesh)
  grader = Grader(config.reward)  # a mistake stops here
  require(
    not (options.keep_correct and grader.asks_model),
    f'--keep-correct: reward.function={config.reward.function!r} asks a reward'
    ' model, and says not what is correct',
  )
  policy, params = command.load_model(options, config)
  dataset = data.load(config.data, OWN, policy.tokenizer, split, config.seed)
  longest = int(dataset.statistics.tokens['prompt'].max())
  room = policy.model.architecture.max_positions
  require(
    longest + config.data.max_response <= room,
    f'a prompt of {longest} tokens and --max-tokens'
    f' {config.data.max_response} exceed the {room} positions of the model',
  )
  source = builders.source(config.data, split, config.seed)
  rows = {row['row']: row for row in source.rows}
  facts = {
    '--keep-correct': options.keep_correct,
    'rows of --data': digest(rows.values()),
    'weights': generations.fingerprint(params),
  }
  width = -(-longest // MULTIPLE) * MULTIPLE
  left_out = collections.Counter()
  with (
    opened(out, config, facts) as file,
    grader,
    open_engine(config, policy) as engine,
  ):
    done = drop_half_batch(file, size, len(dataset))
    for start in tqdm.trange(done, len(dataset), size, disable=None):
      stop = min(start + size, len(dataset))
      examples = dataset.examples(np.arange(start, stop))
      texts, finished = ask(engine, params, examples, config, width)
      scores = grade(grader, examples, texts) if options.keep_correct else None
      teachers = kept(texts, finished, scores, left_out)
      for number, teacher in zip(examples.index, teachers):
        file.write(line(rows[int(number)], teacher))
      file.flush()
      os.fsync(file.fileno())
  for reason, numbers in dataset.statistics.dropped.items():
    print(f'dropped: {len(numbers)} {reason}')
  for reason, count in left_out.items():
    print(f'left out in this call: {count} {reason}')
  lines = out.read_bytes().splitlines()
  counts = [len(json.loads(text)['teacher']) for text in lines]
  print(
    f'{out}: {len(counts)} rows, {sum(counts)} of'
    f' {len(counts) * config.group.samples} answers, {counts.count(0)} rows'
    ' without one'
  )


def ask(
  engine: Any, params: Any, examples: Any, config: Config, width: int
) -> tuple[list[list[str]], Any]:
  """Texts [B][G] of the model and which are finished, [B, G] bool.

  The random bits of an answer depend on (seed, row, member) alone, and every
  call has the same shape, so that a batch comes out the same at any time.
  """
  import jax

  from gft_jax.data import pipeline
  from gft_jax.rollout import groups

  prompts = pipeline.prompts_of(examples)
  count = len(prompts.index)
  prompts = prompts.replace(tokens=prompts.tokens[:, :width])
  responses = engine.sample(
    params,
    groups.pad_rows(prompts, config.data.batch_size),
    engine.key('evaluate', 0),
    config.sampler,
    config.group.samples,
    config.data.max_response,
  )
  responses = jax.tree.map(lambda x: x[:count], responses)
  return engine.decode(responses, config.sampler)


def grade(grader: Any, examples: Any, texts: list[list[str]]):
  """Rewards [B, G]."""
  size = len(texts[0])
  scored = grader.score(
    [prompt for prompt in examples.prompts for _ in range(size)],
    [answer for answer in examples.answers for _ in range(size)],
    [text for row in texts for text in row],
  )
  return scored.values.reshape(-1, size)


def kept(
  texts: list[list[str]], finished, scores, left_out: collections.Counter
) -> list[list[str]]:
  """The answers of each row that may teach; counts the others by reason."""
  teachers: list[list[str]] = [[] for _ in texts]
  for b, row in enumerate(texts):
    for g, text in enumerate(row):
      if not finished[b, g]:
        left_out['cut at --max-tokens'] += 1
      elif not text.strip():
        left_out['empty'] += 1
      elif scores is not None and scores[b, g] < 1:
        left_out['wrong'] += 1
      else:
        teachers[b].append(text)
  return teachers


def line(row: dict[str, Any], teacher: list[str]) -> bytes:
  prompt = row.get('prompt_turns') or row['prompt']
  expert = row.get('expert_turns') or row['expert']
  entry = {'prompt': prompt, 'answer': row['answer']}
  if expert:
    entry['expert'] = expert
  entry['teacher'] = teacher
  return (json.dumps(entry, ensure_ascii=False) + '\n').encode()


@contextlib.contextmanager
def opened(
  out: pathlib.Path, config: Config, facts: dict[str, Any]
) -> Iterator[BinaryIO]:
  """The output, of one process at a time, under the settings it began with.

  Raises:
    ConfigError: another process writes it, or it was begun under others.
  """
  from gft_jax.evaluation import generations

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


def digest(rows: Iterable[dict[str, Any]]) -> str:
  found = hashlib.sha256()
  for row in rows:
    found.update(json.dumps(row).encode())
  return found.hexdigest()[:16]


if __name__ == '__main__':
  sys.exit(main())
