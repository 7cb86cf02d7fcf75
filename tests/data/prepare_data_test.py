"""experiments/prepare_data.py as a user calls it."""

import json
import pathlib
import sys

import pytest

from gft_jax.data import files
from gft_jax.data.columns import column_map

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


def graded_file(tmp_path):
  """12 rows: 2, 2, 1 and 0 of 2 teachers are right; experts 3 and 6 are not."""
  right, wrong = '1+1=2#2', '1+1=3#3'
  teachers = [[right, '#2'], [right, '#2'], [right, wrong], [wrong, '?']]
  rows = [
    {
      'prompt': f'{i}+1-{i}+1:',
      'answer': '2',
      'expert': wrong if i in (3, 6) else right,
      'teacher': [] if i == 9 else teachers[i % 4],
    }
    for i in range(1, 13)
  ]
  path = tmp_path / 'graded.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@pytest.mark.parametrize('flags', [['--reward'], ['--reward', 'arithmetic']])
def test_given_answers_are_graded(main, tmp_path, capsys, flags):
  path, out = graded_file(tmp_path), tmp_path / 'out.json'
  settings = [f'data.cache={tmp_path}/c', f'data.eval_path={path}']
  settings.append('reward.function=arithmetic')
  arguments = ['--path', str(path), '--json', str(out), '--set', *settings]
  assert main([*arguments, *flags]) == 0
  lines = capsys.readouterr().out.splitlines()[-6:]
  assert lines == [
    'expert: 83.33% of 12 answers pass arithmetic',
    'expert: 2 rows without a pass: rows 3, 6',
    'teacher: 59.09% of 22 answers pass arithmetic',
    'teacher: 3 could not be graded: parse',
    'rows by passes: 0: 3, 1: 3, 2: 5',
    'teacher: 3 rows without a pass: rows 3, 7, 11',
  ]
  found = json.loads(out.read_text())['pass_rates']
  assert found['reward'] == 'arithmetic'
  assert found['expert']['rows_without_pass'] == [3, 6]
  assert found['teacher']['pass_rate'] == pytest.approx(13 / 22)
  assert found['teacher']['rows_by_passes'] == {'0': 3, '1': 3, '2': 5}


def test_the_reward_of_a_config(main, tmp_path, capsys):
  path, recipe = graded_file(tmp_path), tmp_path / 'recipe.py'
  recipe.write_text(f"""
from gft_jax.config import Config, DataConfig, RewardConfig

def get_config():
  data = DataConfig(path={str(path)!r}, eval_path={str(path)!r})
  return Config(data=data, reward=RewardConfig(function='math'))
""")
  settings = ['--set', f'data.cache={tmp_path}/c', 'data.rows=2']
  assert main(['--config', str(recipe), '--reward', *settings]) == 0
  assert 'of 2 answers pass math\n' in capsys.readouterr().out


def test_every_bad_row_has_a_number_and_a_reason(main, tmp_path, capsys):
  """Also where there are too many: named first, refused then."""
  good = {'prompt': '1+1:', 'answer': '2', 'expert': '#2'}
  bad = [{'answer': '2'}] * 7 + [{'prompt': '1:', 'answer': '?'}]
  long = [good | {'prompt': '1+1+1+1+1+1+1+1+1:'}]
  path = tmp_path / 'a.jsonl'
  rows = [good] * 30 + bad + long
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  settings = [f'data.cache={tmp_path}/c', f'data.eval_path={path}']
  settings.append('data.max_prompt=16')
  arguments = ['--path', str(path), '--set', *settings]
  named = [
    'dropped: 7 prompt is missing: rows 31, 32, 33, 34, 35 and 2 more',
    'dropped: 1 expert is missing: row 38',
    'dropped: 1 prompts longer than data.max_prompt=16: row 39',
  ]
  out = tmp_path / 'out.json'
  code = main([*arguments, 'data.max_dropped=0.3', '--json', str(out)])
  assert code == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line for line in lines if line.startswith('dropped')] == named
  found = json.loads(out.read_text())['dropped']
  assert list(found.values()) == [[*range(31, 38)], [38], [39]]

  out.unlink()
  assert main([*arguments, '--json', str(out)]) == 2
  found = capsys.readouterr()
  lines = found.out.splitlines()
  assert [line for line in lines if line.startswith('dropped')] == named
  assert found.err.count('\n') == 1 and '8 of 39 rows are bad' in found.err
  assert not out.exists()


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--path', 'none.jsonl'], 'none.jsonl does not exist'),
    (['--set', 'data.max_promt=3'], 'did you mean max_prompt'),
    (['--tokenizer', 'nowhere'], 'no folder nowhere'),
    (['--reward', 'maths'], 'did you mean math'),
    (
      ['--reward', 'model', '--set', 'reward.model=x'],
      'given answers are graded by functions of text',
    ),
    (['--json', 'nowhere/a.json'], 'there is no folder nowhere'),
    (['--json', '.'], '--json . is a folder'),
    (['--config', 'none.py'], 'none.py: no such file'),
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
    columns = column_map(path, '')
    assert set(columns) == {'prompt', 'answer', 'expert'}
    found = [row for _, row in files.rows(path, columns)]
    assert len(found) == rows
    for row in found:
      assert row['answer'] in row['expert'].replace(',', '')
    again = path.read_bytes()
    assert main([*arguments, str(path)]) == 0
    assert path.read_bytes() == again
  assert found[0]['expert'] == f'The answer is {found[0]["answer"]}.'


def test_what_is_left_out_and_not_used_is_said(main, tmp_path, capsys):
  row = {'prompt': '1+1:', 'answer': '2', 'expert': '#2', 'id': 7}
  rows = [row | {'teacher': ['#2', None] if i < 7 else ['2']} for i in range(9)]
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  out = tmp_path / 'out.json'
  arguments = ['--path', str(path), '--json', str(out)]
  assert main([*arguments, '--set', f'data.cache={tmp_path}/c']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[-3:] == [
    'left out: 7 teacher is missing: rows 1, 2, 3, 4, 5 and 2 more',
    'columns: prompt=prompt, answer=answer, expert=expert, teacher=teacher',
    'columns not used: id',
  ]
  found = json.loads(out.read_text())
  assert found['left_out'] == {'teacher is missing': [*range(1, 8)]}
  assert found['unused_columns'] == ['id'] and not found['dropped']


def test_a_file_without_answers_is_described_for_imitation(
  main, tmp_path, capsys
):
  row = {'instruction': '1+1:', 'input': '', 'output': '2'}
  path = tmp_path / 'a.jsonl'
  path.write_text((json.dumps(row) + '\n') * 3)
  arguments = ['--path', str(path), '--set', f'data.cache={tmp_path}/c']
  assert main(arguments) == 0
  out = capsys.readouterr().out
  assert out.startswith('no row has a reference answer: ')
  assert 'set data.columns=answer=NAME\n' in out and 'rows used: 3\n' in out
  # Where the groups are somebody's choice, they are refused.
  assert main([*arguments, 'group.samples=4']) == 2
  assert (
    '; name its column with data.columns=answer=NAME, or imitate the experts'
    ' alone with group.teachers=0 group.samples=0\n'
  ) in capsys.readouterr().err
