"""experiments/prepare_data.py as a user calls it."""

import json
import pathlib
import sys

import pytest

from gft_jax.data import files

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'


@pytest.fixture
def main(monkeypatch):
  monkeypatch.syspath_prepend(EXPERIMENTS)
  import prepare_data

  yield prepare_data.main
  sys.modules.pop('prepare_data')


def test_a_file_is_described(main, tmp_path, capsys):
  path = tmp_path / 'a.jsonl'
  rows = [
    {'prompt': '1+1:', 'answer': '2', 'expert': '1+1=2' + ',' * i + '#2'}
    for i in range(10)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  settings = [f'data.cache={tmp_path}/c', f'data.eval_path={path}']
  arguments = ['--path', str(path), '--set', *settings]
  assert main([*arguments, 'data.max_response=15']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[1].split() == ['prompt', '10', '4.0', '4', '4', '4']
  assert lines[2].split() == ['expert', '10', '12.5', '12', '17', '17']
  assert lines[3] == 'rows used: 8'
  assert lines[4] == (
    'dropped: 2 experts longer than data.max_response=15: rows 9, 10'
  )

  assert main([*arguments, 'data.max_response=10']) == 2
  found = capsys.readouterr()
  assert found.err.startswith('error: ') and found.err.count('\n') == 1
  assert '7 of 10 rows are dropped' in found.err
  assert 'expert' in found.out, 'the lengths that say what to raise'


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--path', 'none.jsonl'], 'none.jsonl does not exist'),
    (['--set', 'data.max_promt=3'], 'did you mean max_prompt'),
    (['--tokenizer', 'nowhere'], 'nowhere: no such folder'),
    (['--reasoning-gym', 'gsm_symbolic'], 'needs --out'),
    (['--reasoning-gym', 'gsm_symbolc', '--out', 'x'], 'mean gsm_symbolic'),
  ],
)
def test_mistakes_are_one_line(main, capsys, arguments, message):
  if '--reasoning-gym' in arguments:
    pytest.importorskip('reasoning_gym')
  assert main(arguments) == 2
  found = capsys.readouterr()
  assert message in found.err and found.err.count('\n') == 1
  assert found.out == ''


def test_reasoning_gym_becomes_a_group_dataset(main, tmp_path):
  pytest.importorskip('reasoning_gym')
  for task, rows in (('gsm_symbolic', 20), ('chain_sum', 5)):
    path = tmp_path / f'{task}.jsonl'
    arguments = ['--reasoning-gym', task, '--rows', str(rows), '--out']
    assert main([*arguments, str(path)]) == 0
    columns = files.column_map(path, '')
    assert set(columns) == {'prompt', 'answer', 'expert'}
    found = [row for _, row in files.rows(path, columns)]
    assert len(found) == rows
    for row in found:
      assert row['answer'] in row['expert'].replace(',', '')
    again = path.read_bytes()
    assert main([*arguments, str(path)]) == 0
    assert path.read_bytes() == again
  assert found[0]['expert'] == f'The answer is {found[0]["answer"]}.'
