"""Rewards as users bring them: how they are read, called and refused."""

import asyncio
import json
from contextlib import nullcontext

import brought_rewards
import jax.numpy as jnp
import pytest

from gft_jax.config import ConfigError, RewardConfig
from gft_jax.rewards.functions import read, resolve
from gft_jax.rewards.grader import Grader, wanted_by

COLUMNS = {'unit': 'm', 'level': 2, 'tags': ['x'], 'data_source': 'gsm8k'}
TURNS = [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'p'}]


def named(name):
  return f'brought_rewards:{name}'


def grade(name, texts=('p', 'a', 'r'), columns=(), workers=0):
  """The score of one answer to one row, and the failures."""
  columns = COLUMNS if columns == () else columns
  settings = RewardConfig(function=named(name), workers=workers)
  with Grader(settings) as grader:
    scored = grader.score(
      *([text] for text in texts), columns=[json.dumps(columns)]
    )
  return float(scored.values[0]), scored.failures


@pytest.mark.parametrize(
  'name, value',
  [
    ('unit', 1),
    ('by_name', 0),
    ('swapped', 1),
    ('other_names', 1),
    ('optional', 3),
    ('all_columns', 4),
    ('by_name_with_all', 1 + 2 + 1),
    ('trl_lengths', 1),
    ('trl_columns', 2 + 1 + 2),
    ('trl_needs_all', 1),
    ('trl_answer', 0),
    ('trl_async', 2),
    ('verl', 0),
    ('asynchronous', 1),
    ('Scorer', 2),
    ('scorer', 5),
    ('method', 14),
    ('bound', 0.25),
    ('mutates', 2),
  ],
)
def test_a_reward_gets_what_its_parameters_name(name, value):
  assert grade(name) == (value, {})


@pytest.mark.parametrize(
  'name', ['by_name', 'trl_answer', 'verl', 'verl_scores']
)
def test_the_right_answer_is_right_under_each_signature(name):
  assert grade(name, ('p', 'a', 'a')) == (1, {})


def test_a_column_with_a_default_may_be_absent_and_else_is_used():
  assert grade('optional', columns={'scale': 9}) == (9, {})
  assert grade('bound', columns={'unit': 'm', 'limit': 1}) == (0.25, {})


def test_a_reward_of_trl_sees_messages_where_the_prompt_is_a_conversation():
  chat = COLUMNS | {'prompts': TURNS}
  assert grade('trl_chat', ('p', 'a', 'four'), chat) == (4 + 2, {})
  # It counts the characters of a text, and one message of a conversation.
  assert grade('trl_lengths', ('p', 'a', 'four')) == (4, {})
  assert grade('trl_lengths', ('p', 'a', 'four'), chat) == (1, {})


def test_none_of_a_reward_of_trl_counts_0_and_is_named():
  assert grade('trl_none', ('p', 'a', 'skip')) == (0, {'skipped': 1})
  assert grade('trl_none', ('p', 'a', 'r')) == (1, {})


def test_rewards_of_trl_itself():
  rewards = pytest.importorskip('trl.rewards', reason='needs trl')
  function = read('trl', rewards.think_format_reward)
  text = '<think>\nso\n</think>\n4'
  assert function.grade('p', 'a', text, {'prompts': TURNS}) == 1


@pytest.mark.parametrize('workers', [0, 1])
def test_a_reward_may_print_and_change_what_it_gets(workers, capfd):
  assert grade('prints', workers=workers) == (1, {})
  assert '{"not": "an answer"}' in capfd.readouterr().out
  settings = RewardConfig(
    function=f'{named("mutates")} + {named("all_columns")}', workers=workers
  )
  with Grader(settings) as grader:
    scored = grader.score(['p'], ['a'], ['r'], columns=[json.dumps(COLUMNS)])
  assert scored.values == [2 + 4]


@pytest.mark.parametrize('workers', [0, 2])
def test_equal_answers_of_other_columns_are_graded_apart(workers):
  settings = RewardConfig(function=named('unit'), workers=workers)
  columns = [json.dumps({'unit': unit}) for unit in ('m', 'kg', 'm')]
  with Grader(settings) as grader:
    scored = grader.score(['p'] * 3, ['a'] * 3, ['r'] * 3, columns=columns)
  assert scored.values.tolist() == [1, 0, 1]


def test_an_async_reward_runs_where_a_loop_runs_already():
  async def notebook():
    return grade('asynchronous')

  assert asyncio.run(notebook()) == (1, {})


@pytest.mark.parametrize(
  'value, number',
  [('bool', 1), ('numpy', 0.5), ('scalar', 0.25), ('int', 3), ('number', 1)],
)
def test_a_number_of_any_library_is_a_reward(value, number):
  assert grade('returned', ('p', 'a', value)) == (number, {})


def test_an_array_of_jax_without_axes_is_a_reward(monkeypatch):
  monkeypatch.setitem(brought_rewards.VALUES, 'jax', jnp.float32(0.5))
  assert grade('returned', ('p', 'a', 'jax')) == (0.5, {})


@pytest.mark.parametrize('value', ['array', 'tuple'])
def test_a_list_of_trl_may_be_an_array_or_a_tuple(value):
  assert grade('listed', ('p', 'a', value)) == (0.5, {})


@pytest.mark.parametrize(
  'name, value, shown',
  [
    *[
      ('returned', value, shown)
      for value, shown in (
        ('none', 'returned None (NoneType)'),
        ('text', "returned '1.0' (str)"),
        ('list', 'returned [1.0] (list)'),
        ('vector', 'returned array([1., 1.]) (ndarray)'),
        ('dictionary', "returned {'score': 1.0} (dict)"),
        ('nan', 'returned nan (float)'),
        ('huge', 'returned 1000'),
        ('complex', 'returned 1j (complex)'),
      )
    ],
    *[
      ('listed', value, shown)
      for value, shown in (
        ('none', 'returned None (NoneType) for a list of one completion'),
        ('number', 'returned 1.0 (float) for a list of one completion'),
        ('two', 'returned [1.0, 2.0] (list) for a list of one completion'),
        ('empty', 'returned [] (list) for a list of one completion'),
        ('text', "returned '1.0' (str) for a list of one completion"),
        ('list of text', "returned '1.0' (str); a reward is one finite number"),
        ('list of nan', 'returned nan (float); a reward is one finite number'),
      )
    ],
  ],
)
def test_what_is_no_number_is_named_with_its_function(
  name, value, shown, capfd
):
  assert grade(name, ('p', 'a', value)) == (0, {'invalid': 1})
  said = capfd.readouterr().err
  assert f'{named(name)} {shown}' in said
  assert len(said.splitlines()) == 2


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
  'name, message, line',
  [
    ('undefined', "NameError: name 'scale' is not defined", 'in undefined'),
    ('deep', 'LinAlgError: Matrix is not positive definite', 'in deep'),
  ],
)
def test_the_first_exception_is_printed_with_its_place(
  name, message, line, workers, capfd
):
  settings = RewardConfig(function=named(name), workers=workers)
  with Grader(settings) as grader:
    scored = grader.score(['p'] * 3, ['a'] * 3, ['r1', 'r2', 'r3'])
    again = grader.score(['p'], ['a'], ['r4'])
  assert scored.failures == {'error': 3} and again.failures == {'error': 1}
  said = capfd.readouterr().err
  assert said.count(message) == 1
  assert f'the reward {named(name)} failed: {message}' in said
  assert f'{brought_rewards.__file__}:' in said and line in said
  assert "of the answer 'r1'" in said


@pytest.mark.parametrize(
  'name, required',
  [
    ('unit', ['unit']),
    ('by_name', []),
    ('optional', []),
    ('trl_columns', ['unit']),
    ('trl_needs_all', []),
    ('trl_answer', []),
    ('verl', ['data_source']),
    ('method', ['level']),
    ('bound', []),
  ],
)
def test_the_columns_that_a_reward_requires(name, required):
  wanted = wanted_by(RewardConfig(function=f'{named(name)} + 2 * length'))
  assert [column for column, _ in wanted.required] == required
  absent = pytest.raises(ConfigError) if required else nullcontext()
  with absent:
    wanted.names(['prompt'], 'rows.jsonl')


@pytest.mark.parametrize(
  'function',
  [
    'arithmetic',
    'format + length + numeric',
    named('other_names'),
    named('Scorer'),
  ],
)
def test_a_reward_of_three_texts_takes_no_column(function):
  wanted = wanted_by(RewardConfig(function=function))
  assert wanted.names(['tolerance', 'limit', 'pattern', 'gold'], 'f') == []


def test_an_absent_column_is_one_line_with_those_that_are_there():
  wanted = wanted_by(RewardConfig(function=named('unit')))
  with pytest.raises(ConfigError) as error:
    wanted.names(['prompt', 'units', 'level'], 'rows.jsonl')
  assert str(error.value) == (
    "reward.function: brought_rewards:unit takes 'unit', which is neither"
    ' prompt, answer, response nor a column of rows.jsonl; columns: prompt,'
    ' units, level; did you mean units?'
  )


@pytest.mark.parametrize(
  'name, message',
  [
    ('no_text', r'takes \(\), and no response; a reward is a function'),
    ('one_text', r'takes \(text\), and no response'),
    ('out_of_order', r'takes \(prompt, completion, answer\), and no response'),
    ('other_order', r'would get them as prompt, answer, response'),
    ('ids_alone', 'takes completion_ids, and a reward sees texts'),
    ('Configured', 'is a class that takes arguments .TypeError'),
    ('VALUES', "no function 'VALUES' in brought_rewards"),
    ('zeros', 'did you mean zero?'),
  ],
)
def test_what_cannot_be_a_reward_is_refused_by_name(name, message):
  with pytest.raises(ConfigError, match=message) as error:
    resolve(named(name), RewardConfig())
  assert named(name) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  'module, text, message',
  [
    ('broken_1', 'import nowhere_at_all', "No module named 'nowhere_at_all'"),
    ('broken_2', 'x = 1\ny = undefined', 'NameError: .*2.py:2, in <module>'),
    ('broken_3', 'def f(:\n', 'SyntaxError: invalid syntax .broken_3.py, line'),
    ('broken_4', 'raise SystemExit(3)', 'SystemExit: 3 .*broken_4.py:1'),
  ],
)
def test_a_module_that_cannot_be_imported_is_named_with_its_line(
  tmp_path, monkeypatch, module, text, message
):
  (tmp_path / f'{module}.py').write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ConfigError, match=message) as error:
    resolve(f'{module}:f', RewardConfig())
  assert f"cannot import '{module}'" in str(error.value)
  assert 'PYTHONPATH' not in str(error.value)


def test_a_module_that_is_not_there_asks_for_its_folder():
  with pytest.raises(ConfigError, match=r"'nowhere'.*PYTHONPATH"):
    resolve('nowhere.rewards:f', RewardConfig())
  with pytest.raises(ConfigError, match=r'is named mine\.reward'):
    Grader(RewardConfig(function='mine/reward.py:near'))
