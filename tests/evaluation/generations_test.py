"""Kept answers: accuracy, comparisons, and the folder that holds them."""

import itertools
import json

import numpy as np
import pytest

from gft_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  EvalConfig,
  RewardConfig,
  override,
)
from gft_jax.evaluation import generations
from gft_jax.rewards.tally import RewardError


def pass_at_k(scores, k):
  """The share of k-subsets of a problem's samples with a right one."""
  subsets = list(itertools.combinations(scores, k))
  return np.mean([max(subset) >= 1 for subset in subsets])


def test_accuracy_counts_subsets():
  scores = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0.5, 1, 0]])
  metrics = generations.accuracy(scores, (1, 2, 4))
  assert metrics['avg@4'] == pytest.approx((scores >= 1).mean())
  assert metrics['mean_reward'] == pytest.approx(scores.mean())
  for k in (1, 2, 4):
    expected = np.array([pass_at_k(row, k) for row in scores])
    assert metrics[f'pass@{k}'] == pytest.approx(expected.mean(), abs=1e-6)
    margin = 1.96 * expected.std(ddof=1) / 2
    low, high = metrics[f'pass@{k}_low'], metrics[f'pass@{k}_high']
    assert low == pytest.approx(max(expected.mean() - margin, 0), abs=1e-4)
    assert high == pytest.approx(min(expected.mean() + margin, 1), abs=1e-4)


@pytest.mark.parametrize(
  ('threshold', 'right'),
  [(1.0, [1, 0]), (0.5, [2, 1]), (0.9, [1, 1]), (-2.0, [4, 4]), (3.0, [0, 0])],
)
def test_an_answer_is_right_where_its_reward_reaches_the_threshold(
  threshold, right
):
  """Mean rewards say nothing about it, nor do rewards outside of 0 to 1."""
  rewards = np.array([[1.5, 0.5, 0, -1], [0.9, 0.3, 0.3, 0.2]], np.float32)
  metrics = generations.accuracy(rewards, (1, 4), threshold=threshold)
  shares = np.array(right) / 4
  assert metrics['threshold'] == threshold
  assert metrics['avg@4'] == pytest.approx(shares.mean())
  assert metrics['pass@1'] == pytest.approx(shares.mean(), abs=1e-6)
  assert metrics['pass@4'] == pytest.approx((shares > 0).mean())
  assert metrics['mean_reward'] == pytest.approx(rewards.mean())
  assert 0 <= metrics['avg@4_low'] <= metrics['avg@4_high'] <= 1
  assert metrics['mean_reward_low'] < metrics['mean_reward'] - 0.1


def test_a_sum_that_misses_the_threshold_by_rounding_is_right():
  tenths = np.float32(0.1)
  total = np.float32(0)
  for _ in range(7):
    total += tenths
  parts = np.array([total, np.float32(0.7) - np.float32(1e-5)])
  assert generations.is_right(parts, 0.7).tolist() == [True, False]


def test_accuracy_counts_votes():
  scores = np.array([[1, 0, 0, 0], [0, 1, 1, 0]])
  votes = np.array([[0, 1, 2, 1], [0, 1, 1, -1]])
  metrics = generations.accuracy(scores, (1, 2, 4), votes)
  found = [metrics[f'maj@{k}'] for k in (1, 2, 4)]
  # Blocks of two: [1, 0 first wins], [0, 0]; [0, 1 first wins], [1, none].
  assert found == [(0.25 + 0.5) / 2, (0.5 + 0.5) / 2, (0 + 1) / 2]
  assert 0 <= metrics['maj@4_low'] < metrics['maj@4_high'] <= 1


@pytest.mark.parametrize(
  ('samples', 'ks'),
  [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (16, (1, 2, 4, 8, 16))],
)
def test_sensible_ks(samples, ks):
  assert generations.sensible_ks(samples) == ks
  EvalConfig(samples=samples, ks=ks)


def test_changed_settings_of_an_evaluation_are_refused(tmp_path):
  config, facts = Config(), {'weights': 'a', 'questions of x': 'b'}
  generations.check_settings(tmp_path, config, facts)
  generations.check_settings(
    tmp_path, override(config, 'log.progress=false'), facts
  )
  generations.check_settings(
    tmp_path, config, {'weights': 'a', 'questions of y': 'c'}
  )
  kept = (tmp_path / 'settings.json').read_text()
  for changed, also, message in [
    (override(config, 'model.path=m'), {}, "model.path: '' -> 'm'"),
    (config, {'weights': 'z'}, "weights: 'a' -> 'z'; use a new --out"),
    (config, {'questions of x': 'z'}, "questions of x: 'b' -> 'z'"),
    (config, {'questions of y': 'z'}, "questions of y: 'c' -> 'z'"),
  ]:
    with pytest.raises(ConfigError, match=message):
      generations.check_settings(tmp_path, changed, facts | also)
  assert (tmp_path / 'settings.json').read_text() == kept
  (tmp_path / 'settings.json').write_text('{"config": {}}')
  with pytest.raises(ConfigError, match=r'settings\.json is not of an evaluat'):
    generations.check_settings(tmp_path, config, facts)


def test_a_fingerprint_changes_with_any_parameter():
  def params(at=None):
    tree = {'a': np.ones((2, 3, 4)), 'b': np.zeros(5), 'c': np.float32(1)}
    return tree | ({at: tree[at] + 1e-6} if at else {})

  prints = [generations.fingerprint(params(at)) for at in (None, *'abc', None)]
  assert prints[0] == prints[-1] and len(set(prints)) == 4


def write_answers(path, scores, responses=None):
  """One line per score [problems][samples]."""
  lines = []
  for i, row in enumerate(scores):
    for g, score in enumerate(row):
      text = responses[i][g] if responses else ''
      entry = (i, f'question {i}', f'{i}', text, True, score)
      lines.append(dict(zip(generations.KEPT, entry)))
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return path


def test_paired_differences(tmp_path):
  before = write_answers(tmp_path / 'a.jsonl', [[1], [1], [0], [0], [1]])
  after = write_answers(
    tmp_path / 'b.jsonl', [[1, 1], [0, 1], [1, 1], [0, 0], [0, 0]]
  )
  found = generations.paired(before, after)
  differences = np.array([0, -0.5, 1, 0, -1])
  reach = 1.96 * differences.std(ddof=1) / 5**0.5
  assert found == {
    'problems': 5,
    'before': pytest.approx(0.6),
    'after': pytest.approx(0.5),
    'difference': pytest.approx(-0.1),
    'difference_low': pytest.approx(-0.1 - reach, abs=1e-6),
    'difference_high': pytest.approx(-0.1 + reach, abs=1e-6),
    'gained': 1,
    'lost': 2,
    'mean_reward_before': pytest.approx(0.6),
    'mean_reward_after': pytest.approx(0.5),
    'threshold': 1.0,
  }


def test_gained_counts_right_answers_and_not_rewards(tmp_path):
  """Partial credit rises in problem 0 and falls in 1; problem 2 is lost."""
  before = write_answers(tmp_path / 'a.jsonl', [[0, 0.1], [0.9, 0.9], [1, 0]])
  after = write_answers(
    tmp_path / 'b.jsonl', [[0.9, 0.8], [0.1, 0], [0.9, 0.9]]
  )
  found = generations.paired(before, after)
  assert (found['gained'], found['lost']) == (0, 1)
  assert (found['before'], found['after']) == (pytest.approx(1 / 6), 0)
  assert found['mean_reward_before'] == pytest.approx(2.9 / 6)
  found = generations.paired(before, after, threshold=0.5)
  assert (found['gained'], found['lost'], found['threshold']) == (2, 1, 0.5)


def test_answers_are_paired_by_problem_in_any_order_of_lines(tmp_path):
  before = write_answers(tmp_path / 'a.jsonl', [[1], [0], [0]])
  after = tmp_path / 'b.jsonl'
  lines = before.read_text().splitlines()
  after.write_text('\n'.join(reversed(lines)))
  found = generations.paired(before, after)
  assert (found['gained'], found['lost']) == (0, 0)


def test_answers_to_other_problems_are_not_compared(tmp_path):
  before = write_answers(tmp_path / 'a.jsonl', [[1], [1]])
  after = write_answers(tmp_path / 'b.jsonl', [[1], [1], [0]])
  with pytest.raises(ConfigError, match=r'they differ in 2$'):
    generations.paired(before, after)
  text = before.read_text().replace('question 1', 'another')
  after.write_text(text)
  with pytest.raises(ConfigError, match=r'they differ in 1$'):
    generations.paired(before, after)


def test_regrade_votes_by_what_is_extracted(tmp_path):
  responses = [
    [r'\boxed{0}', '3', 'it is 0.', '5'],
    ['8', r'\boxed{1}', r'\boxed{ 1.0 }', '9'],
    ['?', '?', '?', '2'],
  ]
  path = write_answers(tmp_path / 'a.jsonl', [[0] * 4] * 3, responses)
  metrics = generations.regrade(path, RewardConfig(function='math'))
  assert metrics['problems'] == 3
  assert metrics['avg@4'] == pytest.approx(5 / 12)
  assert metrics['maj@4'] == metrics['pass@4'] == 1
  assert {f'maj@{k}' for k in (1, 2, 4)} <= set(metrics)
  assert metrics['reward_failures/parse'] == 3
  assert (metrics['threshold'], metrics['mean_reward']) == (1, metrics['avg@4'])
  metrics = generations.regrade(
    path, RewardConfig(function='math'), threshold=-1.0
  )
  assert metrics['avg@4'] == 1 and metrics['threshold'] == -1
  with pytest.raises(ConfigError, match=r'too few for eval.ks=\(1, 8\)'):
    generations.regrade(path, RewardConfig(function='math'), (1, 8))


def by(name):
  return RewardConfig(function=f'brought_rewards:{name}')


def kept_with(path, *columns):
  """One answer to each problem, with the columns of its row."""
  write_answers(path, [[0]] * len(columns))
  rows = map(json.loads, path.read_text().splitlines())
  lines = [json.dumps(r | {'columns': c}) for r, c in zip(rows, columns)]
  path.write_text('\n'.join(lines) + '\n')
  return path


def test_kept_answers_are_graded_again_by_their_columns(tmp_path):
  path = kept_with(tmp_path / 'a.jsonl', {'unit': 'm'}, {'unit': 'kg'})
  assert generations.regrade(path, by('unit'))['avg@1'] == 0.5
  # They stay what they were when they are written again.
  again = ''.join(generations.lines_of(generations.read_answers(path)))
  assert list(map(json.loads, again.splitlines())) == list(
    map(json.loads, path.read_text().splitlines())
  )
  for name, column in (('method', 'level'), ('verl', 'data_source')):
    with pytest.raises(ConfigError, match=f"takes '{column}'.*columns: unit"):
      generations.regrade(path, by(name))


def test_columns_that_were_not_kept_come_from_the_dataset(tmp_path):
  source = tmp_path / 'rows.jsonl'
  rows = [
    {'prompt': f'question {i}', 'answer': 'a', 'unit': 'kgm'[i % 2 * 2 :]}
    for i in range(20)
  ]
  source.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  settings = DataConfig(path=str(source), cache=str(tmp_path / 'cache'))
  # Rows are numbered from 1, so row 19 asks question 18.
  path = write_answers(tmp_path / 'test.jsonl', [[0]] * 20)
  lines = [json.loads(line) for line in path.read_text().splitlines()[18:]]
  lines = [json.dumps(row | {'index': row['index'] + 1}) for row in lines]
  path.write_text('\n'.join(lines) + '\n')
  found = generations.regrade(path, by('unit'), (), settings)
  assert found['avg@1'] == 0.5
  other = write_answers(tmp_path / 'train.jsonl', [[0]] * 2)
  with pytest.raises(ConfigError, match=r'other problems .* differ in 0, 1$'):
    generations.regrade(other, by('unit'), (), settings)


def test_a_reward_that_fails_for_every_kept_answer_is_refused(tmp_path):
  path = write_answers(tmp_path / 'a.jsonl', [[0], [1]])
  with pytest.raises(RewardError, match=r'all 2 answers of .*a.jsonl'):
    generations.regrade(path, by('undefined'))


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('', 'holds no answer'),
    ('not JSON', 'line 1 is no answer'),
    ('[]', 'line 1 is no answer'),
    ('{"index": 0}', 'line 1 is no answer'),
  ],
)
def test_a_file_without_answers_is_refused(tmp_path, line, message):
  path = tmp_path / 'a.jsonl'
  with pytest.raises(ConfigError, match='does not exist'):
    generations.read_answers(path)
  path.write_text(line)
  with pytest.raises(ConfigError, match=message):
    generations.read_answers(path)


def test_answers_without_grades_or_of_uneven_number_are_refused(tmp_path):
  path = write_answers(tmp_path / 'a.jsonl', [[None], [1]])
  with pytest.raises(ConfigError, match='line 1 is no answer'):
    generations.read_answers(path)
  write_answers(path, [[1, 0], [1]])
  with pytest.raises(ConfigError, match='from 1 to 2 answers to a problem'):
    generations.read_answers(path)
