"""Preparing rows and grading answers: how many a second, and how it grows.

  python experiments/speed/data.py --rows 25000 50000 100000 \\
    --answers 2500 5000 10000 --workers 1 2

Every point is a fresh process on a cold cache, with a peak memory of its own.
Preparation is all from a JSONL file to a tokenised dataset: reading and checking
rows, writing and reading ArrayRecord, tokenising (a byte-level BPE of 4,096,
trained on the first rows). A row has a prompt of about 220 characters and an
expert and three teachers of about 300. Grading is math-verify in the guarded
pool, on answers of five kinds, none of which is a duplicate, after each worker
has graded once; `--reward arithmetic` shows the cost of the pool alone. An
exponent is the slope of log seconds over log size: 1 is linear. That of CPU
seconds holds on a machine with other work, too.
"""

import argparse
import json
import math
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = (
  'the farmer sells apples for dollars each and then buys bags of seed so that'
  ' he has half as many left over after two days how much does she earn if every'
  ' box holds a dozen eggs minus what was broken on the way to market therefore'
).split()
TEACHERS = 3
VOCABULARY = 4096
KINDS = ('seconds', 'cpu_seconds')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--rows', type=int, nargs='*', default=[25_000, 50_000, 100_000])
  add('--answers', type=int, nargs='*', default=[2500, 5000, 10_000])
  add('--workers', type=int, nargs='+', default=[1, 2])
  add('--reward', default='math', help='math or arithmetic')
  add('--measure', nargs='+', help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.measure:
    kind, *sizes = options.measure
    found = measure(kind, list(map(int, sizes)), options.reward)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print('@' + json.dumps(found | {'peak_mb': peak}))
    return
  curves = {}
  if options.rows:
    curves['rows prepared'] = {
      n: measured(options, 'preparation', n) for n in options.rows
    }
  for workers in options.workers if options.answers else ():
    curves[f'answers graded, workers {workers}'] = {
      n: measured(options, 'grading', n, workers) for n in options.answers
    }
  line = {
    'benchmark': 'data',
    'arguments': sys.argv[1:],
    'curves': curves,
    'exponents': {
      name: {kind: exponent(points, kind) for kind in KINDS}
      for name, points in curves.items()
    },
  }
  print(json.dumps(line))
  for name, points in curves.items():
    for n, point in points.items():
      parts = ', '.join(
        f'{part} {seconds:.1f} s' for part, seconds in point['parts'].items()
      )
      print(
        f'| {name} | {n:,} | {point["seconds"]:.1f} s ({parts}) |'
        f' {point["cpu_seconds"]:.1f} s of CPU |'
        f' {n / point["seconds"]:,.0f} a second | {point["peak_mb"]:,.0f} MB |'
      )
    wall, cpu = line['exponents'][name].values()
    print(f'| {name} | exponent {wall:.2f}, of CPU seconds {cpu:.2f} |')


def measured(options, *measure) -> dict:
  """A point, from a process of its own."""
  command = [sys.executable, __file__, '--reward', options.reward]
  done = subprocess.run(
    [*command, '--measure', *map(str, measure)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  (line,) = (x for x in done.stdout.splitlines() if x.startswith('@'))
  return json.loads(line[1:])


def exponent(points: dict[int, dict], kind: str) -> float:
  """The slope of log seconds over log size, by least squares."""
  x = [math.log(n) for n in points]
  y = [math.log(point[kind]) for point in points.values()]
  x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
  above = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y))
  return above / (sum((a - x_mean) ** 2 for a in x) or math.nan)


def measure(kind: str, sizes: list[int], reward: str) -> dict:
  """What --measure asks for: seconds, and what they were spent on."""
  if kind == 'preparation':
    (count,) = sizes
    return preparation(count)
  count, workers = sizes
  return grading(count, workers, reward)


def preparation(count: int) -> dict:
  tokenizer = trained_tokenizer()
  with tempfile.TemporaryDirectory() as folder:
    prepared(20, tokenizer, folder)  # imports
    return prepared(count, tokenizer, folder)


def prepared(count: int, tokenizer, folder: str) -> dict:
  from gft_jax import data
  from gft_jax.config import DataConfig, GroupConfig
  from gft_jax.data import builders

  path = pathlib.Path(folder) / f'{count}.jsonl'
  with path.open('w') as file:
    for row in rows(count):
      file.write(json.dumps(row) + '\n')
  config = DataConfig(
    path=str(path),
    eval_path=str(path),
    cache=f'{folder}/cache',
    max_prompt=256,
    max_response=512,
  )
  group = GroupConfig(teachers=TEACHERS)
  busy, start = cpu_seconds(), time.perf_counter()
  builders.source(config, 'train')
  read = time.perf_counter()
  dataset = data.load(config, group, tokenizer, 'train')
  end = time.perf_counter()
  assert len(dataset) == count
  return {
    'seconds': end - start,
    'cpu_seconds': cpu_seconds() - busy,
    'parts': {'reading': read - start, 'tokenising': end - read},
  }


def grading(count: int, workers: int, reward: str) -> dict:
  from gft_jax.config import RewardConfig
  from gft_jax.rewards.grader import Grader

  prompts, answers, responses = zip(*map(case, range(count)))
  config = RewardConfig(function=reward, workers=workers)
  busy, start = cpu_seconds(), time.perf_counter()
  with Grader(config) as grader:
    grader.score(['a', 'b'], ['1', '2'], ['1', '2'])
    ready = time.perf_counter()
    scores = grader.score(prompts, answers, responses)
    end = time.perf_counter()
  assert reward != 'math' or scores.values.all(), scores.failures
  return {
    'seconds': end - ready,
    'cpu_seconds': cpu_seconds() - busy,
    'parts': {'start of the workers': ready - start},
  }


def cpu_seconds() -> float:
  """Of this process and of its children that have ended."""
  found = [
    resource.getrusage(who)
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  ]
  return sum(usage.ru_utime + usage.ru_stime for usage in found)


def rows(count: int):
  draw = random.Random(0)

  def text(words: int) -> str:
    some = draw.choices(WORDS, k=words)
    return ' '.join([*some, str(draw.randrange(10_000))])

  for i in range(count):
    yield {
      'prompt': f'{i}: {text(45)}?',
      'answer': str(i),
      'expert': f'{text(60)} #### {i}',
      'teacher': [f'{text(60)} #### {i}' for _ in range(TEACHERS)],
    }


def trained_tokenizer():
  import tokenizers
  import transformers
  from tokenizers import models, pre_tokenizers, trainers

  bpe = tokenizers.Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY,
    special_tokens=['<eos>'],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  texts = (row[role] for row in rows(1000) for role in ('prompt', 'expert'))
  bpe.train_from_iterator(texts, trainer)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=bpe, eos_token='<eos>'
  )


def case(i: int) -> tuple[str, str, str]:
  """Question, reference answer and a right response, in one of five kinds."""
  answer, written = (
    (f'{i}', f'{i}'),
    (rf'\frac{{{i}}}{{7}}', f'{i}/7'),
    (f'{i}x+1', f'1+{i}x'),
    (f'{i / 8}', f'{i / 8}'),
    (rf'{i}\sqrt{{2}}', rf'\sqrt{{2}} \cdot {i}'),
  )[i % 5]
  return f'question {i}', answer, rf'so it is \boxed{{{written}}}'


if __name__ == '__main__':
  main()
