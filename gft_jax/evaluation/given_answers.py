"""How often given answers are right, by the reward of a run's evaluations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tqdm

from gft_jax.config import Config, RewardConfig, require
from gft_jax.data import builders, carried
from gft_jax.evaluation.generations import is_right
from gft_jax.rewards.grader import Grader, evaluation_reward, wanted_by
from gft_jax.rewards.tally import Tally

# Answers that are graded between two steps of the progress bar.
CHUNK = 1000


class Grades(NamedTuple):
  """Grades of the answers of one role.

  Attributes:
    answers: how many were graded.
    pass_rate: share of those that are right, as in evaluation.
    failures: cause -> count, of what could not be graded; see `rewards.grader`.
    rows_by_passes: number of passes -> rows; without rows that give no answer.
    rows_without_pass: numbers of the rows whose answers all fail.
  """

  answers: int
  pass_rate: float
  failures: dict[str, int]
  rows_by_passes: dict[int, int]
  rows_without_pass: list[int]


def check_reward(reward: RewardConfig) -> None:
  """Raises ConfigError unless the reward is a function of text."""
  with Grader(reward) as grader:
    _check_text(grader, reward)


def grade_given(config: Config, split: str) -> dict[str, Grades]:
  """Grades every given answer of a split, the first data.rows rows of it.

  Args:
    config: of the data, and of the reward and the threshold of evaluations;
      the reward is a function of text.
    split: see `builders.source`.

  Returns:
    'expert', 'teacher' -> grades; a role without an answer is absent.

  Raises:
    ConfigError: the data cannot be used, or not the reward.
    RewardError: a reward of the user failed for every answer.
  """
  source = builders.source(config.data, split, config.seed)
  rows = source.rows[: config.data.rows or len(source.rows)]
  numbers = [row['row'] for row in rows]
  columns = carried.columns(
    source, wanted_by(evaluation_reward(config)), numbers
  )
  given = {
    'expert': [[row['expert']] if row['expert'] else [] for row in rows],
    'teacher': [row['teacher'] for row in rows],
  }
  reward = evaluation_reward(config)
  with Grader(reward) as grader:
    _check_text(grader, reward)
    return {
      role: grade(
        grader, rows, answers, role, columns, threshold=config.eval.threshold
      )
      for role, answers in given.items()
      if any(answers)
    }


def grade(
  grader: Grader,
  rows: Sequence[dict],
  answers: Sequence[Sequence[str]],
  name: str = '',
  columns: Sequence[str] = (),
  *,
  threshold: float = 1.0,
) -> Grades:
  """Grades answers[i] to rows[i], one answer at least.

  Args:
    grader: its reward is a function of text.
    rows: of a `builders.Source`.
    answers: for each row.
    name: of the role, for the progress bar and messages.
    columns: of each row, of `carried.columns`; empty: none.
    threshold: an answer is right where its reward is at least this.

  Raises:
    RewardError: a reward of the user failed for every answer.
  """
  columns = columns or [''] * len(rows)
  cases = [
    (row['prompt'], row['answer'], text, taken)
    for row, texts, taken in zip(rows, answers, columns)
    for text in texts
  ]
  passed: list[bool] = []
  tally = Tally()
  with tqdm.tqdm(total=len(cases), desc=name, disable=None) as bar:
    for start in range(0, len(cases), CHUNK):
      chunk = cases[start : start + CHUNK]
      *texts, taken = zip(*chunk)
      scored = grader.score(*texts, columns=taken)
      passed += is_right(scored.values, threshold).tolist()
      tally.add(scored.answers, scored.failed)
      bar.update(len(chunk))
  tally.check(f'the {name or "given"} answers', set())
  sizes = [len(texts) for texts in answers]
  sums = np.add.reduceat([*passed, 0], np.cumsum([0, *sizes[:-1]]))
  counts = [int(n) for n, size in zip(sums, sizes) if size]
  histogram = np.bincount(counts, minlength=max(sizes) + 1)
  return Grades(
    answers=len(cases),
    pass_rate=sum(passed) / len(cases),
    failures=tally.counts,
    rows_by_passes=dict(enumerate(histogram.tolist())),
    rows_without_pass=[
      row['row'] for row, n, size in zip(rows, sums, sizes) if size and not n
    ],
  )


def _check_text(grader: Grader, reward: RewardConfig) -> None:
  require(
    not grader.asks_model,
    f'reward.function={reward.function!r} asks a reward model;'
    ' given answers are graded by functions of text',
  )
