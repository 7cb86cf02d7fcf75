"""Runs that are graded by rewards and columns of a user."""

import dataclasses
import json

import brought_rewards
import pytest
from small_runs import alone

from gft_jax.config import override
from gft_jax.loop import train
from gft_jax.rewards.tally import RewardError
from gft_jax.run import writers


@pytest.fixture
def brought(config, tmp_path):
  """One stage of own answers on a file with a column beside the roles."""
  rows = [
    {'prompt': f'{i}+1:', 'answer': str(i + 1), 'unit': 'km'[i % 2], 'level': i}
    for i in range(16)
  ]
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  found = alone(
    config, 'grpo', 'group.experts=0', 'group.teachers=0', 'group.samples=2'
  )
  for assignment in (
    f'data.path={path}',
    f'data.eval_path={path}',
    f'data.cache={tmp_path / "cache"}',
    'eval.splits=test',
    'eval.kl_prompts=0',
    'log.report=false',
  ):
    found = override(found, assignment)
  return found


def with_reward(config, name, evaluation=''):
  reward = dataclasses.replace(
    config.reward, function=f'brought_rewards:{name}'
  )
  config = dataclasses.replace(config, reward=reward)
  return override(config, f'eval.reward={evaluation}')


@pytest.mark.slow
def test_a_reward_that_raises_stops_a_run_at_its_first_step(brought, tmp_path):
  with pytest.raises(RewardError, match='for all 8 answers of step arm/1'):
    train(with_reward(brought, 'undefined'), tmp_path / 'run')
  assert list(writers.read_metrics(tmp_path / 'run')) == []


@pytest.mark.slow
def test_columns_reach_rewards_in_training_and_evaluation(
  brought, tmp_path, caplog
):
  """TRL's signature trains; ours, with a column, evaluates."""
  config = with_reward(brought, 'trl_columns', 'brought_rewards:unit')
  results = train(config, tmp_path / 'run')
  assert results['arm']['eval/test/avg@2'] == 0.5  # every other row is in m
  records = list(writers.read_metrics(tmp_path / 'run'))
  assert not any('failures' in name for record in records for name in record)
  assert all(r['train/reward'] > 3 for r in records if 'train/reward' in r)
  assert caplog.text == ''


@pytest.mark.slow
def test_a_broken_reward_of_an_evaluation_loses_no_step(
  brought, tmp_path, monkeypatch
):
  config = with_reward(brought, 'trl_lengths', 'brought_rewards:undefined')
  with pytest.raises(RewardError, match='of evaluation arm/3 of test'):
    train(config, tmp_path / 'run')
  monkeypatch.setattr(brought_rewards, 'scale', 1.0, raising=False)
  results = train(config, tmp_path / 'run')
  assert results['arm']['eval/test/avg@2'] == 1
  steps = [r['step'] for r in writers.read_metrics(tmp_path / 'run')]
  assert steps == [1, 2, 3, 3]


@pytest.mark.slow
def test_a_run_that_learns_nothing_says_so_once(brought, tmp_path, caplog):
  train(with_reward(brought, 'zero'), tmp_path / 'run')
  said = [r.getMessage() for r in caplog.records]
  (said,) = [text for text in said if 'gradient is exactly 0' in text]
  assert said.startswith('stage arm, step 1:')
  assert 'all rewards are equal (their mean is 0)' in said
