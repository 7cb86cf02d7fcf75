"""How well answers are graded: right references as right, others as wrong.

  python experiments/grading.py --data FOLDER [--benchmarks gsm8k,math] [--out FILE]

FOLDER has the files of the benchmarks (see prepare_data.py). Each reference is
graded three times: against itself, as a policy would write it; against another
reference of its benchmark, drawn at random; and against the nearest one. That
another is another is decided here, without the graders: as floats they differ
by more than 1e-6 of the larger, as letters they are two, and where one of the
two is no float, their texts differ. Two texts may still say the same, which is
why what is left is listed, to be read.
"""

import argparse
import json
import pathlib
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from gft_jax.answers import final
from gft_jax.config import RewardConfig
from gft_jax.data import benchmarks
from gft_jax.rewards.grader import Grader

DIFFERENT = 1e-6


class Counts(NamedTuple):
  """Of one benchmark and one kind of answer."""

  answers: int
  surprises: list[tuple[str, str]]  # reference, answer


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--data', type=pathlib.Path, required=True)
  add('--benchmarks', default='all', help='names with commas, or all')
  add('--seed', type=int, default=0, help='of the others drawn at random')
  add('--workers', type=int, default=2)
  add('--out', type=pathlib.Path, help='a JSON file of what is left')
  options = parser.parse_args()
  names = [*benchmarks.BENCHMARKS]
  if options.benchmarks != 'all':
    names = [*map(benchmarks.canonical, options.benchmarks.split(','))]
  total: dict[str, list[int]] = {}
  left = {}
  for name in names:
    path = benchmarks.find(options.data, name)
    if not path.is_file():
      print(f'{name}: no file in {options.data}')
      continue
    references = [row['answer'] for row in benchmarks.rows(name, path)]
    for kind, counts in rates(
      references, benchmarks.BENCHMARKS[name].reward, options
    ).items():
      answers, surprises = total.setdefault(kind, [0, 0])
      total[kind] = [
        answers + counts.answers,
        surprises + len(counts.surprises),
      ]
      left[f'{name}/{kind}'] = counts.surprises
      print(f'{name} {kind}: {len(counts.surprises)} of {counts.answers} left')
  for kind, (answers, surprises) in total.items():
    print(f'{kind}: {surprises} of {answers} left, {surprises / answers:.4%}')
  for place, surprises in left.items():
    for reference, answer in surprises:
      print(f'{place}\n  reference {reference!r}\n  answer    {answer!r}')
  if options.out:
    options.out.write_text(json.dumps(left, indent=1) + '\n')


def rates(references: Sequence[str], reward: str, options) -> dict[str, Counts]:
  """Kind of answer -> how many were graded, and those graded otherwise."""
  stated = [final(text) or '' for text in references]
  values = [value_of(text) for text in stated]
  found = {}
  kinds = {
    'right': list(range(len(stated))),
    'wrong, random': others(stated, values, options.seed),
    'wrong, nearest': nearest(stated, values),
  }
  settings = RewardConfig(reward, workers=options.workers, timeout_s=5.0)
  with Grader(settings) as grader:
    for kind, chosen in kinds.items():
      pairs = [(i, j) for i, j in enumerate(chosen) if j is not None]
      answers = [written(references[j], stated[j]) for _, j in pairs]
      golds = [references[i] for i, _ in pairs]
      scores = grader.score([''] * len(pairs), golds, answers)
      expected = float(kind == 'right')
      surprises = [
        (golds[n][-200:], answers[n][-200:])
        for n, value in enumerate(scores.values)
        if value != expected
      ]
      found[kind] = Counts(len(pairs), surprises)
  return found


def written(reference: str, stated: str) -> str:
  """A reference as a policy would write it: in a box, unless it is prose."""
  mixed = '$' in stated.replace(r'\$', '').strip('$')
  if mixed or re.search('boxed|#{4}', reference):
    return reference
  return rf'The answer is \boxed{{{stated.strip("$")}}}.'


def value_of(text: str) -> float | None:
  """A reference as a float, by the simplest reading; None: it is none."""
  text = re.sub(r'[$,\s]|\\[!%]', '', text)
  fraction = re.fullmatch(r'(-?)\\d?frac\{(\d+)\}\{(\d+)\}', text)
  if fraction:
    sign, above, below = fraction.groups()
    return float(f'{sign}1') * int(above) / int(below)
  try:
    return float(text)
  except ValueError:
    return None


def differ(a: str, b: str, x: float | None, y: float | None) -> bool:
  """Whether two references are two, by their values or else by their texts."""
  if x is None or y is None:
    one, other = (re.sub(r'[\s$.]', '', text).casefold() for text in (a, b))
    return bool(other) and one != other
  return abs(x - y) > DIFFERENT * max(abs(x), abs(y))


def others(
  stated: Sequence[str], values: Sequence[float | None], seed: int
) -> list[int | None]:
  """For each reference another one, drawn at random."""
  draw = random.Random(seed)
  chosen: list[int | None] = []
  for i in range(len(stated)):
    tries = (draw.randrange(len(stated)) for _ in range(1000))
    chosen.append(
      next((j for j in tries if _other(stated, values, i, j)), None)
    )
  return chosen


def nearest(
  stated: Sequence[str], values: Sequence[float | None]
) -> list[int | None]:
  """For each reference the nearest other one: by value, or by the alphabet."""
  numbers = sorted((x, i) for i, x in enumerate(values) if x is not None)
  texts = sorted((stated[i], i) for i, x in enumerate(values) if x is None)
  chosen: list[int | None] = [None] * len(stated)
  for order in ([i for _, i in numbers], [i for _, i in texts]):
    for place, i in enumerate(order):
      sides = (order[place + 1 :], order[:place][::-1])
      near = [
        next((j for j in side if _other(stated, values, i, j)), None)
        for side in sides
      ]
      chosen[i] = min(
        (j for j in near if j is not None),
        key=lambda j: abs((values[i] or 0) - (values[j] or 0)),
        default=None,
      )
  return chosen


def _other(stated, values, i: int, j: int) -> bool:
  return differ(stated[i], stated[j], values[i], values[j])


if __name__ == '__main__':
  main()
