"""What failures of grading mean: a stop, a warning, or a count."""

import logging

import numpy as np
import pytest

from gft_jax.config import RewardConfig
from gft_jax.rewards.grader import Grader, Problems, score_groups
from gft_jax.rewards.tally import Failure, RewardError, Tally, counted, joined


def named(*names):
  return ' + '.join(f'brought_rewards:{name}' for name in names)


def tally_of(function, *batches):
  """Of batches of answers, as a step or an evaluation grades them."""
  tally = Tally()
  with Grader(RewardConfig(function=function)) as grader:
    for batch in batches:
      count = len(batch)
      scored = grader.score(['p'] * count, ['a'] * count, batch)
      tally.add(scored.answers, scored.failed)
  return tally


@pytest.mark.parametrize(
  'function, message',
  [
    (named('undefined'), r'3 error; the first: NameError.*in undefined'),
    (named('returned'), "error; the first: KeyError: 'a'"),
    (named('zero', 'undefined'), 'brought_rewards:undefined failed for all 3'),
    ('length + 2 * brought_rewards:undefined', 'in undefined'),
  ],
)
def test_a_reward_that_fails_for_every_answer_stops(function, message):
  tally = tally_of(function, ['a', 'b'], ['a'])
  with pytest.raises(RewardError, match=message) as error:
    tally.check('step gft/1', set())
  assert 'for all 3 answers of step gft/1' in str(error.value)
  assert '\n' not in str(error.value)


def test_a_reward_that_ends_its_process_stops_too():
  settings = RewardConfig(function=f'length + {named("dies")}', workers=1)
  with Grader(settings) as grader:
    scored = grader.score(['p'] * 2, ['a'] * 2, ['r', 's'])
  tally = Tally()
  tally.add(scored.answers, scored.failed)
  with pytest.raises(RewardError, match=r'dies failed .*2 crash'):
    tally.check('step gft/1', set())


def test_other_failures_of_one_cause_each_stop_too():
  """KeyError for one, no number for another: both are faults of the code."""
  tally = tally_of(named('returned'), ['nan', 'unknown'])
  with pytest.raises(RewardError, match='1 invalid, 1 error'):
    tally.check('step gft/1', set())


@pytest.mark.parametrize(
  'function, batches',
  [
    (named('some'), [['bad', 'good']]),
    (named('some'), [['bad', 'bad'], ['good']]),
    (named('some', 'zero'), [['bad', 'good']]),
    (named('zero'), [['a', 'b']]),
    (named('undefined'), [[]]),
  ],
)
def test_a_reward_that_is_right_for_some_answers_goes_on(
  function, batches, caplog
):
  tally_of(function, *batches).check('step gft/1', set())
  assert caplog.text == ''


@pytest.mark.parametrize(
  'function, why',
  [
    ('arithmetic', "2 gold; the first: no integer after the last '#' of '#a'"),
    (named('unread'), "2 parse; the first: no box, of the answer 'a'"),
    (named('unread_or_broken'), '1 parse, 1 error'),
    (named('trl_none'), None),
    ('numeric', '2 gold'),
  ],
)
def test_a_warning_shows_an_answer_where_none_can_be_read(
  function, why, caplog
):
  answers = ['a', 'b'] if why else ['skip', 'skip']
  tally, told = tally_of(function, answers), set()
  with caplog.at_level(logging.WARNING):
    tally.check('step gft/1', told)
    tally.check('step gft/2', told)
  (record,) = caplog.records
  assert (why or '2 skipped') in record.getMessage()
  assert 'for all 2 answers of step gft/1' in record.getMessage()


def test_failures_of_batches_and_processes_add():
  one = {'a': {'error': Failure(2, 'first')}, 'b': {'parse': Failure(1, 'x')}}
  two = {'a': {'error': Failure(3, 'later'), 'gold': Failure(1, 'y')}}
  both = joined([one, two])
  assert both['a'] == {'error': (5, 'first'), 'gold': (1, 'y')}
  assert counted(both) == {'error': 5, 'gold': 1, 'parse': 1}
  # As it arrives from another process, in JSON.
  assert joined([{'a': {'error': [2, 'first']}}])['a'] == {
    'error': Failure(2, 'first')
  }


def test_an_empty_slot_is_no_answer():
  with Grader(RewardConfig(function=named('undefined'))) as grader:
    scored = score_groups(
      grader,
      Problems(['p', 'q'], ['a', 'b']),
      [['r', ''], ['s', 't']],
      np.array([[True, False], [True, True]]),
      np.ones((2, 2), bool),
    )
  assert scored.answers == 3 and scored.failures == {'error': 3}
