"""Malformed datasets: one clear line, exit code 2, and nothing is written.

The rule: a row in which a role cannot be read as text is bad, and a run stops
where more than data.max_dropped (a fifth) of the rows are bad, or then do not
fit the limits. A null or an empty list of teachers is no defect of a row, and
neither is a teacher that cannot be read: it is left out and counted. A column
of teachers that is empty in every row is a defect of the file.
"""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gft_jax.data import files

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
ROWS = 20
GOOD = {
  'prompt': '1+1:',
  'answer': '2',
  'expert': '1+1=2#2',
  'teacher': ['#2', '1+1=2#2'],
}
RECIPE = """
from gft_jax.config import Config, GroupConfig, LogConfig, Stage

def get_config():
  return Config(
    group=GroupConfig(experts=1, teachers=1, samples=2),
    log=LogConfig(progress=False, tensorboard=False, report=False),
    stages=(Stage('gft', steps=1),),
  )
"""


def jsonl(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def altered(**values):
  """A file of JSONL in which every row has these values."""
  return jsonl([GOOD | values] * ROWS)


def without(*names):
  return jsonl([{k: GOOD[k] for k in GOOD if k not in names}] * ROWS)


def parquet(table):
  sink = pa.BufferOutputStream()
  pq.write_table(table, sink)
  return sink.getvalue().to_pybytes()


def columns(**values):
  return {name: [value] * ROWS for name, value in values.items()}


GOOD_PARQUET = parquet(pa.Table.from_pylist([GOOD] * ROWS))
TWICE = pa.table([['p'] * ROWS, ['q'] * ROWS, ['1'] * ROWS], list('abc'))

# Name -> the file's suffix, its bytes and what the line says.
MALFORMED = {
  # The file as a whole.
  'empty': ('jsonl', b'', 'has no rows'),
  'blank lines': ('jsonl', b'\n \n\r\n\n', 'has no rows'),
  'not UTF-8': (
    'jsonl',
    jsonl([GOOD] * ROWS).replace(b'1+1', b'1\xff1'),
    'no rows that can be read; row 1 is not UTF-8',
  ),
  'UTF-16': (
    'jsonl',
    jsonl([GOOD] * ROWS).decode().encode('utf-16'),
    'row 1 is not UTF-8',
  ),
  'compressed': ('jsonl', gzip.compress(altered()), 'row 1 is not UTF-8'),
  'zero bytes': ('jsonl', bytes(1000), 'row 1 is not JSON'),
  'lists': ('jsonl', b'[1, 2]\n' * ROWS, 'row 1 is not a JSON object'),
  'one row over many lines': (
    'jsonl',
    json.dumps(GOOD, indent=1).encode(),
    'row 1 is not JSON',
  ),
  'brackets without end': ('jsonl', b'[' * 100_000, 'row 1 is not JSON'),
  'a number of 5,000 digits': (
    'jsonl',
    b'{"prompt": "p", "answer": %s}\n' % (b'9' * 5000),
    'row 1 is not JSON',
  ),
  'no column': ('jsonl', b'{}\n' * ROWS, 'has no rows'),
  'no prompt': ('jsonl', without('prompt'), 'no column for the prompt among'),
  'no answer': (
    'jsonl',
    without('answer', 'expert'),
    'no column for the answer among prompt, teacher',
  ),
  'duplicate keys': (
    'jsonl',
    b'{"prompt": "p", "answer": "1", "answer": "2"}\n' * ROWS,
    "row 1 has the key 'answer' twice",
  ),
  'too few rows': ('jsonl', jsonl([GOOD] * 3), '3 rows, too few to hold'),
  'wrong suffix': ('txt', altered(), 'malformed.txt is neither .jsonl nor'),
  'text as parquet': ('parquet', altered(), 'is not a parquet file'),
  'empty parquet': ('parquet', b'', 'is not a parquet file'),
  'truncated parquet': (
    'parquet',
    GOOD_PARQUET[: len(GOOD_PARQUET) // 2],
    'is not a parquet file',
  ),
  'damaged parquet': (
    'parquet',
    GOOD_PARQUET[:20] + b'\xff' * 40 + GOOD_PARQUET[60:],
    'is damaged',
  ),
  'parquet without rows': (
    'parquet',
    parquet(pa.table({'prompt': pa.array([], pa.string())})),
    'has no rows',
  ),
  'two columns of one name': (
    'parquet',
    parquet(TWICE.rename_columns(['prompt', 'prompt', 'answer'])),
    'columns prompt',
  ),
  'structures as parquet': (
    'parquet',
    parquet(pa.table(columns(prompt={'a': 1}, answer='1'))),
    'every row is bad; row 1: prompt is a dict, not text',
  ),
  # The rows.
  'null prompts': ('jsonl', altered(prompt=None), 'row 1: prompt is missing'),
  'null answers': ('jsonl', altered(answer=None), 'row 1: answer is missing'),
  'empty experts': ('jsonl', altered(expert=' '), 'row 1: expert is empty'),
  'answers that are NaN': (
    'jsonl',
    altered(answer=float('nan')),
    'row 1: answer is nan, not text',
  ),
  'answers that are infinite': (
    'parquet',
    parquet(pa.table(columns(prompt='p', answer=float('inf')))),
    'row 1: answer is inf, not text',
  ),
  'answers that are objects': (
    'jsonl',
    altered(answer={'value': 2}),
    'row 1: answer is a dict, not text',
  ),
  'lone surrogates': (
    'jsonl',
    altered(prompt='\ud800'),
    'row 1: prompt is not UTF-8',
  ),
  'teachers that are null': (
    'jsonl',
    altered(teacher=[None, None]),
    "the teacher column 'teacher' is empty in every row",
  ),
  'empty lists of teachers': (
    'jsonl',
    altered(teacher=[]),
    "the teacher column 'teacher' is empty in every row",
  ),
  'a fourth of the rows is bad': (
    'jsonl',
    jsonl([GOOD] * 15 + [GOOD | {'prompt': None}] * 5),
    '5 of 20 rows are bad, more than data.max_dropped=0.2 allows; the first:'
    ' row 16: prompt is missing',
  ),
  # The rows against tokenizer and limits.
  'prompts that are too long': (
    'jsonl',
    altered(prompt='1+' * 50 + '1:'),
    'longer than data.max_prompt=16',
  ),
  'experts that are too long': (
    'jsonl',
    altered(expert='1+1=2,' * 50),
    'longer than data.max_response=40',
  ),
  'text that the tokenizer does not know': (
    'jsonl',
    altered(prompt='What is 1+1?'),
    'with text that the tokenizer does not know',
  ),
  'rows of 10 MB': (
    'jsonl',
    jsonl([GOOD] * 10 + [GOOD | {'expert': '1+' * 5_000_000}] * 3),
    'row 11: expert is longer than 4,000,000 characters',
  ),
}
if '.csv' in files._READERS:
  MALFORMED['ragged CSV'] = (
    'csv',
    b'prompt,answer\n' + b'1:,1,1\n1:\n' * ROWS,
    'cells for 2 columns',
  )

# Both scripts read through one door; a run also has a model and a workdir.
ALSO_TRAINED = (
  'empty',
  'too few rows',
  'damaged parquet',
  'duplicate keys',
  'null prompts',
  'empty lists of teachers',
  'a fourth of the rows is bad',
  'prompts that are too long',
  'rows of 10 MB',
)


@pytest.fixture
def scripts(monkeypatch):
  monkeypatch.syspath_prepend(EXPERIMENTS)
  import prepare_data
  import train

  yield {'prepare_data': prepare_data.main, 'train': train.main}
  for name in ('prepare_data', 'train'):
    sys.modules.pop(name)


def arguments(script, path, folder):
  """What a user types; all that it may write lies in `folder`."""
  settings = ['--set', f'data.cache={folder}/cache', 'data.max_prompt=16']
  settings += ['data.max_response=40', 'reward.function=arithmetic']
  if script == 'prepare_data':
    return ['--path', str(path), '--json', f'{folder}/out.json', *settings]
  recipe = folder / 'recipe.py'
  recipe.write_text(RECIPE)
  workdir = ['--workdir', f'{folder}/run', f'--config={recipe}']
  return [*workdir, *settings, f'data.path={path}']


def check(folder, code, error, message):
  assert code == 2
  assert error.startswith('error: ') and error.count('\n') == 1
  assert message in error and len(error) < 600
  assert not (folder / 'run').exists() and not (folder / 'out.json').exists()


@pytest.mark.parametrize(
  ('script', 'name'),
  [
    # prepare_data describes all rows, however few.
    *(('prepare_data', name) for name in MALFORMED if name != 'too few rows'),
    *(('train', name) for name in ALSO_TRAINED),
  ],
)
def test_one_line_and_nothing_written(scripts, tmp_path, capsys, script, name):
  suffix, content, message = MALFORMED[name]
  path = tmp_path / f'malformed.{suffix}'
  path.write_bytes(content)
  code = scripts[script](arguments(script, path, tmp_path))
  check(tmp_path, code, capsys.readouterr().err, message)
  assert path.read_bytes() == content
  # Rows of a file that is read may be cached, never those of a file that is not.
  if 'every row' in message:
    assert not list(tmp_path.glob('cache/**/*.array_record*'))


@pytest.mark.parametrize('script', ['prepare_data', 'train'])
def test_a_folder_is_no_dataset(scripts, tmp_path, capsys, script):
  folder = tmp_path / 'data.jsonl'
  folder.mkdir()
  code = scripts[script](arguments(script, folder, tmp_path))
  check(tmp_path, code, capsys.readouterr().err, 'data.jsonl is a folder')


def test_a_few_bad_rows_are_named_and_the_others_used(
  scripts, tmp_path, capsys
):
  """What is legal in single rows: null and empty teachers; a fifth bad."""
  rows = [GOOD] * 36 + [GOOD | {'teacher': None}, GOOD | {'teacher': []}]
  rows += [GOOD | {'prompt': None}, GOOD | {'answer': ''}]
  path = tmp_path / 'a.jsonl'
  path.write_bytes(jsonl(rows))
  call = arguments('prepare_data', path, tmp_path)
  assert scripts['prepare_data'](call) == 0
  out = capsys.readouterr().out
  assert 'dropped: 1 prompt is missing: row 39\n' in out
  assert 'dropped: 1 answer is empty: row 40\n' in out
  found = json.loads((tmp_path / 'out.json').read_text())
  assert found['dropped'] == {
    'prompt is missing': [39],
    'answer is empty': [40],
  }


@pytest.mark.parametrize(
  'script, name',
  [
    ('prepare_data', 'duplicate keys'),
    ('train', 'truncated parquet'),
  ],
)
def test_as_a_process(tmp_path, script, name):
  suffix, content, message = MALFORMED[name]
  path = tmp_path / f'malformed.{suffix}'
  path.write_bytes(content)
  done = subprocess.run(
    [
      *(sys.executable, str(EXPERIMENTS / f'{script}.py')),
      *arguments(script, path, tmp_path),
    ],
    env=os.environ | {'PYTHONPATH': str(EXPERIMENTS.parent)},
    capture_output=True,
    text=True,
  )
  check(tmp_path, done.returncode, done.stderr, message)
