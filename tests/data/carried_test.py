"""Columns of a dataset on their way to a reward."""

import datetime
import decimal
import json

import pytest
from data_rows import GROUP

from gft_jax import data
from gft_jax.config import ConfigError, DataConfig, RewardConfig
from gft_jax.data import arithmetic, builders, carried
from gft_jax.rewards.functions import NOTHING
from gft_jax.rewards.grader import wanted_by

LONG = 'p' * 40


def row(i, **further):
  return {'prompt': f'{i}+1:', 'answer': str(i + 1), **further}


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def config(tmp_path, rows, **settings):
  path = str(write(tmp_path / 'rows.jsonl', rows))
  cache = str(tmp_path / 'cache')
  settings = {'eval_path': path, 'max_prompt': 16} | settings
  return DataConfig(path=path, cache=cache, **settings)


def wanted(name):
  return wanted_by(RewardConfig(function=f'brought_rewards:{name}'))


def columns(settings, name, split='train'):
  """Of every row of a split, for one reward."""
  source = builders.source(settings, split)
  numbers = [row['row'] for row in source.rows]
  found = carried.columns(source, wanted(name), numbers)
  return [json.loads(text) for text in found]


def test_a_reward_gets_the_columns_that_it_names_and_no_others(tmp_path):
  rows = [row(i, unit='m', level=i, other=LONG) for i in range(3)]
  assert columns(config(tmp_path, rows), 'unit') == [{'unit': 'm'}] * 3


def test_a_row_without_the_column_of_others_has_null(tmp_path):
  rows = [row(0, unit='m'), row(1), row(2, unit=None)]
  found = columns(config(tmp_path, rows), 'unit')
  assert found == [{'unit': 'm'}, {'unit': None}, {'unit': None}]


def test_values_of_json_arrive_as_they_are(tmp_path):
  unit = {'name': ['m', 'é'], 'factor': 1.5, 'si': True, 'more': None}
  assert columns(config(tmp_path, [row(0, unit=unit)]), 'unit') == [
    {'unit': unit}
  ]


def test_values_of_parquet_arrive_as_json(tmp_path):
  import pyarrow
  import pyarrow.parquet

  unit = {
    'text': 'é',
    'list': ['a', 'b'],
    'price': decimal.Decimal('1.50'),
    'count': decimal.Decimal('3'),
    'day': datetime.date(2026, 1, 2),
  }
  path = tmp_path / 'rows.parquet'
  table = pyarrow.Table.from_pylist([row(0, unit=unit)])
  pyarrow.parquet.write_table(table, path)
  settings = DataConfig(
    path=str(path), eval_path=str(path), cache=str(tmp_path / 'cache')
  )
  (found,) = columns(settings, 'unit')
  assert found['unit'] == {
    'text': 'é',
    'list': ['a', 'b'],
    'price': 1.5,
    'count': 3,
    'day': '2026-01-02',
  }


def test_rows_that_are_dropped_do_not_shift_the_columns(tmp_path):
  rows = [row(i, unit=str(i), level=0) for i in range(6)]
  rows[1]['prompt'] = None  # bad in the file
  rows[3]['prompt'] = '1+' * 20  # too long for the limits
  settings = config(tmp_path, rows, max_dropped=0.5)
  dataset = data.load(
    settings, GROUP, arithmetic.tokenizer(), 'train', wanted=wanted('unit')
  )
  examples = dataset.first(9)
  assert [json.loads(text)['unit'] for text in examples.columns] == [
    *('0', '2', '4', '5')
  ]
  assert examples.prompts == ['0+1:', '2+1:', '4+1:', '5+1:']
  assert examples.problems.columns == examples.columns


def test_the_held_out_rows_have_their_own(tmp_path):
  rows = [row(i, unit=str(i)) for i in range(20)]
  settings = config(tmp_path, rows, eval_path='')
  assert columns(settings, 'unit', 'test') == [{'unit': '18'}, {'unit': '19'}]


def test_an_absent_column_is_refused_with_the_file(tmp_path):
  settings = config(tmp_path, [row(0, units='m')])
  with pytest.raises(ConfigError, match=r'rows.jsonl; columns: .*mean units\?'):
    columns(settings, 'unit')


def test_the_embedded_task_has_its_roles_alone():
  rows = [{'row': 7, 'expert': 'e', 'teacher': ['t']} | row(0)]
  source = builders.Source('arithmetic/terse, train', rows, {})
  (text,) = carried.columns(source, wanted('all_columns'), [7])
  roles = {'expert': 'e', 'teacher': ['t']} | row(0)
  assert json.loads(text) == roles
  with pytest.raises(ConfigError, match='nor a column of arithmetic/terse'):
    carried.columns(source, wanted('unit'), [7])


def test_a_role_may_be_named_whatever_its_column_is_called(
  tmp_path, monkeypatch
):
  monkeypatch.setattr('brought_rewards.unit', lambda response, expert: 1.0)
  rows = [{'question': '1+1:', 'solution': 's #### 2'}]
  assert columns(config(tmp_path, rows), 'unit') == [{'expert': 's #### 2'}]
  rows = [{'question': '1+1:', 'answer': '2'}]
  with pytest.raises(ConfigError, match="takes 'expert'"):
    columns(config(tmp_path, rows), 'unit')


def test_a_reward_with_keywords_gets_every_column_of_the_file(tmp_path):
  rows = [row(0, unit='m', level=1)]
  expected = {'prompt': '0+1:', 'answer': '1', 'unit': 'm', 'level': 1}
  for name in ('all_columns', 'trl_lengths'):
    assert columns(config(tmp_path, rows), name) == [expected]


@pytest.mark.parametrize(
  'row, turns',
  [
    ({'prompt': '1+1:', 'answer': '2'}, None),
    ({'prompt': '[{"rule": "1+1"}]', 'answer': '2'}, None),
    (
      {
        'prompt': '[{"role": "user", "content": "1+1:"}]',
        'answer': '2',
      },
      [('user', '1+1:')],
    ),
    (
      {'prompt': [{'role': 'user', 'content': '1+1:'}], 'answer': '2'},
      [('user', '1+1:')],
    ),
    (
      {
        'prompt': [
          {'role': 'system', 'content': 's'},
          {'role': 'user', 'content': '1+1:'},
        ],
        'answer': '2',
      },
      [('system', 's'), ('user', '1+1:')],
    ),
    (
      {
        'messages': [
          {'role': 'user', 'content': '1+1:'},
          {'role': 'assistant', 'content': '#### 2'},
        ]
      },
      [('user', '1+1:')],
    ),
  ],
)
def test_a_reward_of_trl_gets_the_turns_of_a_conversation(tmp_path, row, turns):
  (found,) = columns(config(tmp_path, [row]), 'trl_chat')
  said = found.get('prompts')
  assert (said and [(t['role'], t['content']) for t in said]) == turns


def test_the_fingerprint_has_required_columns_alone(tmp_path):
  def fingerprint(unit, found):
    rows = [row(i, unit=unit) for i in range(2)]
    return data.load(
      config(tmp_path, rows), GROUP, arithmetic.tokenizer(), 'train', 0, found
    ).fingerprint

  plain = fingerprint('m', NOTHING)
  assert fingerprint('kg', NOTHING) == plain
  # A run that began before rewards took columns goes on.
  assert fingerprint('m', wanted('all_columns')) == plain
  assert fingerprint('m', wanted('unit')) != plain
  assert fingerprint('m', wanted('unit')) != fingerprint('kg', wanted('unit'))
