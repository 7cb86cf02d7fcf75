"""Budgets, positions, and what is due after a step."""

import json

import pytest

from gft_jax.config import ConfigError, Stage
from gft_jax.run.progress import (
  Budget,
  Due,
  Position,
  Spent,
  what_is_due,
)

NOTHING = Due(evaluate=False, save=False, last=False)
EVALUATE = Due(evaluate=True, save=False, last=False)
SAVE = Due(evaluate=False, save=True, last=False)
BOTH = Due(evaluate=True, save=True, last=False)
LAST = Due(evaluate=True, save=True, last=True)


@pytest.mark.parametrize(
  ('step', 'settings', 'due'),
  [
    (1, {}, NOTHING),
    (4, {}, NOTHING),
    (5, {}, SAVE),
    (9, {}, NOTHING),
    (10, {}, LAST),
    (3, {'evaluate_every': 3}, EVALUATE),
    (4, {'evaluate_every': 3}, NOTHING),
    (5, {'evaluate_every': 5}, BOTH),
    (3, {'evaluate_every': 3, 'save_evaluated': True}, BOTH),
    (4, {'evaluate_every': 3, 'save_evaluated': True}, NOTHING),
    (5, {'evaluate_every': 3, 'save_evaluated': True}, SAVE),
    (1, {'stop_requested': True}, SAVE),
    (3, {'evaluate_every': 3, 'stop_requested': True}, BOTH),
    (1, {'budget_reached': True}, LAST),
    (1, {'budget_reached': True, 'stop_requested': True}, LAST),
    (10, {'evaluate_every': 3, 'stop_requested': True}, LAST),
    (1, {'save_every': 1}, SAVE),
    (1, {'evaluate_every': 1, 'save_every': 1}, BOTH),
  ],
)
def test_what_is_due_after_a_step_of_ten(step, settings, due):
  settings = {'evaluate_every': 0, 'save_every': 5} | settings
  assert what_is_due(step, 10, **settings) == due


@pytest.mark.parametrize(
  ('spent', 'limits', 'reached'),
  [
    (Spent(0, 0.0), {}, False),
    (Spent(10**9, 1e9), {}, False),
    (Spent(99, 0.0), {'tokens': 100}, False),
    (Spent(100, 0.0), {'tokens': 100}, True),
    (Spent(0, 4.9), {'seconds': 5.0}, False),
    (Spent(0, 5.0), {'seconds': 5.0}, True),
    (Spent(100, 0.0), {'tokens': 100, 'seconds': 5.0}, True),
  ],
)
def test_a_budget_is_reached_where_it_has_a_limit(spent, limits, reached):
  assert spent.reaches(Stage(**limits)) is reached


def test_the_first_step_after_a_start_costs_no_seconds(monkeypatch):
  now = [100.0]
  monkeypatch.setattr('time.perf_counter', lambda: now[0])
  budget = Budget(Spent(7, 2.0))
  now[0] = 160.0  # Compiled meanwhile.
  budget.charge(10)
  assert budget.spent == Spent(17, 2.0)
  now[0] = 163.0
  budget.charge()
  assert budget.spent == Spent(17, 5.0)
  now[0] = 200.0  # Evaluated and saved meanwhile.
  budget.restart_clock()
  now[0] = 201.0
  budget.charge(10)
  assert budget.spent == Spent(27, 6.0)


def test_a_position_is_read_as_it_was_written():
  position = Position(
    {'grain': {'next_index': 3}},
    metrics_bytes=12,
    evaluation={'eval/test/avg@2': 0.5},
    spent=Spent(3, 0.25),
    unfinished_evaluation='last',
    score=0.5,
  )
  written = json.loads(json.dumps(position.to_json()))
  assert Position.from_json(written) == position


@pytest.mark.parametrize('owes', ['', 'step', 'last'])
def test_a_position_of_version_1_is_read(owes):
  position = Position.from_json(
    {
      'data': {'grain': {'next_index': 3}},
      'metrics_bytes': 12,
      'evaluation': {},
      'spent': {'tokens': 3, 'seconds': 0.25},
      'finished': False,
      'owes': owes,
      'score': None,
    }
  )
  assert position.unfinished_evaluation == owes
  assert position.spent == Spent(3, 0.25)
  assert position.version == 2


def test_a_position_of_a_later_version_is_refused():
  with pytest.raises(ConfigError, match='version 3, written by a later'):
    Position.from_json({'version': 3})
