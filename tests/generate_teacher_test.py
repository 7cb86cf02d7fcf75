"""experiments/generate_teacher.py as a user calls it."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from small_runs import with_flags

from gft_jax.data import files
from gft_jax.data.columns import ROLES, column_map

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / 'experiments/generate_teacher.py'


def short(prompt: str, answer: str, response: str) -> float:
  """A reward that some answers of an untrained model get."""
  return float(len(response) < 6)


@pytest.fixture
def script(monkeypatch):
  monkeypatch.syspath_prepend(str(SCRIPT.parent))
  import generate_teacher

  yield generate_teacher
  sys.modules.pop('generate_teacher')


def flags(whole, out, rows, *more):
  """Of a small file of real prompts of the embedded task."""
  workdir, _ = whole
  words = [
    *('--workdir', str(workdir), '--stage', 'gft', '--data', 'arithmetic'),
    *('--answers', '3', '--max-tokens', '20', '--out', str(out)),
    *('--set', f'data.rows={rows}', 'data.batch_size=8'),
  ]
  return with_flags(words, more)


def test_what_is_written_is_a_dataset(script, whole, tmp_path, capsys):
  out = tmp_path / 'a.jsonl'
  assert script.main(flags(whole, out, 30)) == 0
  said = capsys.readouterr().out
  columns = column_map(out, '')
  assert columns == {role: role for role in ROLES[:4]}
  rows = [row for _, row in files.rows(out, columns)]
  given = [len(row['teacher']) for row in rows]
  assert len(rows) == 30 and 0 < sum(given) < 90 and max(given) == 3
  assert f'30 rows, {sum(given)} of 90 answers' in said
  left_out = re.findall(r'left out in this call: (\d+) ', said)
  assert sum(map(int, left_out)) == 90 - sum(given)
  from gft_jax.data import arithmetic

  for row, source in zip(rows, arithmetic.rows('train', size=30)):
    assert {k: row[k] for k in ('prompt', 'answer', 'expert')} == {
      k: source[k] for k in ('prompt', 'answer', 'expert')
    }

  assert len({text for row in rows for text in row['teacher']}) > 10
  assert script.main(flags(whole, tmp_path / 'other.jsonl', 30)) == 0
  assert (tmp_path / 'other.jsonl').read_bytes() == out.read_bytes()
  seed = ('--seed', '1')
  assert script.main([*seed, *flags(whole, tmp_path / 'c.jsonl', 30)]) == 0
  assert (tmp_path / 'c.jsonl').read_bytes() != out.read_bytes()


@pytest.mark.slow
def test_a_killed_call_continues_bit_for_bit(script, whole, tmp_path):
  """SIGKILL after the first batches; what it left is part of the whole."""
  killed, rows = tmp_path / 'killed.jsonl', 800
  process = subprocess.Popen(
    [sys.executable, str(SCRIPT), *flags(whole, killed, rows)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 120
  while not (killed.exists() and killed.stat().st_size):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  left = killed.read_bytes()
  assert 0 < left.count(b'\n') < rows

  assert script.main(flags(whole, killed, rows)) == 0
  whole_file = tmp_path / 'whole.jsonl'
  assert script.main(flags(whole, whole_file, rows)) == 0
  assert killed.read_bytes() == whole_file.read_bytes()
  assert killed.read_bytes().startswith(left)
  assert killed.read_bytes().count(b'\n') == rows


def test_half_a_batch_and_half_a_line_are_written_again(
  script, whole, tmp_path
):
  out = tmp_path / 'a.jsonl'
  assert script.main(flags(whole, out, 30)) == 0
  content = out.read_bytes()
  lines = content.splitlines(keepends=True)
  for count, torn in ((0, 5), (3, 0), (8, 20), (29, 1)):
    out.write_bytes(b''.join(lines[:count]) + lines[count][:torn])
    assert script.main(flags(whole, out, 30)) == 0
    assert out.read_bytes() == content


def test_other_settings_are_refused_by_name(script, whole, tmp_path, capsys):
  data, out = tmp_path / 'data.jsonl', tmp_path / 'a.jsonl'
  row = {'prompt': '1+1:', 'answer': '2', 'expert': '1+1=2#2'}
  data.write_text((json.dumps(row) + '\n') * 20)

  def call(*more):
    capsys.readouterr()
    settings = f'data.cache={tmp_path}/cache'
    given = (settings, '--data', str(data), *more)
    code = script.main(flags(whole, out, 20, *given))
    return code, capsys.readouterr().err

  assert call() == (0, '')
  content = out.read_bytes()
  for more, name in (
    (('--temperature', '0.5'), 'sampler.temperature: 1.0 -> 0.5'),
    (('--answers', '4'), 'group.samples: 3 -> 4'),
    (('--keep-correct',), '--keep-correct: False -> True'),
    (('--stage', 'base'), 'weights: '),
  ):
    code, error = call(*more)
    assert code == 2 and error.count('\n') == 1 and name in error
  data.write_text((json.dumps(row | {'answer': '3'}) + '\n') * 20)
  code, error = call()
  assert code == 2 and 'rows of --data: ' in error
  assert out.read_bytes() == content


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--out', 'a.parquet'], 'does not end in .jsonl'),
    (['--out', 'nowhere/a.jsonl'], 'there is no folder nowhere'),
    (['--data', 'none.jsonl'], 'none.jsonl does not exist'),
    (['--max-tokens', '5000'], 'exceed the 2048 positions of the model'),
    (['--answers', '-1'], 'group.samples=-1 must not be negative'),
    (
      ['--set', 'data.batch_size=6', 'mesh.fsdp=4'],
      'multiple of the 4 devices',
    ),
    (
      [
        '--keep-correct',
        *('--set', 'reward.function=model', 'reward.model=x'),
      ],
      'asks a reward model',
    ),
    (['--stage', 'gtf'], 'did you mean gft?'),
    (['--model', 'x'], 'give --model, or --workdir and --stage'),
    (['--set', 'reward.function=maths'], 'did you mean math?'),
  ],
)
def test_mistakes_are_one_line(
  script, whole, tmp_path, monkeypatch, capsys, arguments, message
):
  monkeypatch.chdir(tmp_path)
  code = script.main(flags(whole, 'a.jsonl', 30, *arguments))
  error = capsys.readouterr().err
  assert code == 2 and message in error and error.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_a_file_of_another_origin_is_not_touched(
  script, whole, tmp_path, capsys
):
  out = tmp_path / 'a.jsonl'
  out.write_text('mine')
  assert script.main(flags(whole, out, 30)) == 2
  assert 'of another origin' in capsys.readouterr().err
  assert out.read_text() == 'mine'


def test_wrong_answers_can_be_left_out(script, whole, tmp_path, capsys):
  reward = f'reward.function={__name__}:short'
  every, right = tmp_path / 'all.jsonl', tmp_path / 'right.jsonl'
  settings = (reward, 'reward.workers=0')
  assert script.main(flags(whole, every, 30, *settings)) == 0
  arguments = flags(whole, right, 30, *settings)
  assert script.main(['--keep-correct', *arguments]) == 0
  rows = [json.loads(line) for line in every.read_text().splitlines()]
  expected = [[t for t in row['teacher'] if len(t) < 6] for row in rows]
  found = [json.loads(line) for line in right.read_text().splitlines()]
  assert [row['teacher'] for row in found] == expected
  assert 0 < sum(map(len, expected)) < sum(len(r['teacher']) for r in rows)
