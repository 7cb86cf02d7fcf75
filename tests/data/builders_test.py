"""What is written is what is read, and what is edited is written again."""

import contextlib
import json
import os
import pathlib
import pwd
import shutil
import tempfile

import pytest

from gft_jax.config import ConfigError, DataConfig
from gft_jax.data import arithmetic, builders, files


def jsonl(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def numbered(count):
  return [
    {'prompt': f'p{i}', 'answer': str(i), 'teacher': ['ä'] * (i % 3)}
    for i in range(count)
  ]


def config(tmp_path, **settings):
  return DataConfig(**{'cache': str(tmp_path / 'cache')} | settings)


def prepared(tmp_path):
  return sorted((tmp_path / 'cache').glob('*/*/1.0.0'))


@pytest.fixture
def unprivileged():
  """A folder, and a context in which this process may read it alone."""
  folder = pathlib.Path(tempfile.mkdtemp())  # pytest's own are private
  # All modules are imported while this process may still read the checkout.
  builders.source(config(folder / 'before'), 'train')
  shutil.rmtree(folder / 'before')
  builders._read.cache_clear()

  @contextlib.contextmanager
  def lower():
    folders = [folder, *filter(pathlib.Path.is_dir, folder.rglob('*'))]
    for path in folders:
      path.chmod(0o555)
    user = os.geteuid()
    if not user:
      os.seteuid(65534)  # Permissions do not bind root.
    try:
      yield
    finally:
      os.seteuid(user)
      for path in folders:
        path.chmod(0o755)

  yield folder, lower
  shutil.rmtree(folder)


@pytest.fixture
def small(monkeypatch):
  """The embedded task with short training splits."""
  monkeypatch.setitem(arithmetic.SIZES, 'train', 50)
  monkeypatch.setitem(arithmetic.SIZES, 'pretrain', 50)


def test_the_embedded_task_comes_back_as_generated(tmp_path, small):
  for split in arithmetic.SIZES:
    rows = builders.source(config(tmp_path), split).rows
    expected = list(arithmetic.rows(split))
    assert [row.pop('row') for row in map(dict, rows)] == list(range(len(rows)))
    assert [{**row, 'row': i} for i, row in enumerate(expected)] == rows
  (file,) = (tmp_path / 'cache').glob('*/*/terse/1.0.0/*-test.array_record*')
  assert file.stat().st_size > 0


def test_the_other_expert_is_a_name_away(tmp_path, small):
  terse = builders.source(config(tmp_path, path='arithmetic'), 'train').rows
  verbose = builders.source(
    config(tmp_path, path='arithmetic/verbose'), 'train'
  ).rows
  assert [row['prompt'] for row in terse] == [row['prompt'] for row in verbose]
  assert terse[0]['expert'] == 'p9n4#5'
  assert verbose[0]['expert'] == '3+6=9;9-4=5#5'
  with pytest.raises(ConfigError, match='did you mean verbose'):
    builders.source(config(tmp_path, path='arithmetic/verbos'), 'train')
  with pytest.raises(ConfigError, match='did you mean ood_length'):
    builders.source(config(tmp_path), 'ood_lenght')


def test_a_file_comes_back_as_written(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', numbered(20))
  settings = config(tmp_path, path=path)
  train = builders.source(settings, 'train').rows
  test = builders.source(settings, 'test').rows
  assert [row['row'] for row in train] == list(range(1, 19))
  assert [row['row'] for row in test] == [19, 20]
  assert train[2] == {
    'row': 3,
    'prompt': 'p2',
    'answer': '2',
    'expert': '',
    'teacher': ['ä', 'ä'],
  }
  with pytest.raises(ConfigError, match="split='ood_length' is not one of"):
    builders.source(settings, 'ood_length')


def test_at_most_256_rows_are_held_out(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', numbered(3000))
  settings = config(tmp_path, path=path)
  assert len(builders.source(settings, 'train').rows) == 3000 - 256
  assert len(builders.source(settings, 'test').rows) == 256


def test_too_few_rows_to_hold_out(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', numbered(9))
  with pytest.raises(ConfigError, match=r'9 rows, too few.*data.eval_path'):
    builders.source(config(tmp_path, path=path), 'train')
  settings = config(tmp_path, path=path, eval_path=path)
  assert len(builders.source(settings, 'train').rows) == 9
  assert len(builders.source(settings, 'test').rows) == 9


def test_an_edited_source_is_prepared_again(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', numbered(20))
  settings = config(tmp_path, path=path)
  builders.source(settings, 'train')
  builders.source(settings, 'train')
  assert len(prepared(tmp_path)) == 1
  rows = numbered(20)
  rows[0]['answer'] = '9'  # The same size, the same name.
  jsonl(tmp_path / 'a.jsonl', rows)
  assert builders.source(settings, 'train').rows[0]['answer'] == '9'
  assert len(prepared(tmp_path)) == 2


def test_other_columns_are_prepared_again(tmp_path):
  path = jsonl(
    tmp_path / 'a.jsonl',
    [{'prompt': 'p', 'other': 'q', 'answer': '1'}] * 20,
  )
  for columns, prompt in (('', 'p'), ('prompt=other,answer=answer', 'q')):
    settings = config(tmp_path, path=path, columns=columns)
    assert builders.source(settings, 'train').rows[0]['prompt'] == prompt


def test_an_interrupted_preparation_does_not_count(tmp_path, monkeypatch):
  path = jsonl(tmp_path / 'a.jsonl', numbered(20))
  settings = config(tmp_path, path=path)
  read = files.rows

  def interrupted(*arguments):
    for number, row in read(*arguments):
      if number == 15:
        raise KeyboardInterrupt
      yield number, row

  monkeypatch.setattr(files, 'rows', interrupted)
  with pytest.raises(KeyboardInterrupt):
    builders.source(settings, 'train')
  assert not prepared(tmp_path)
  monkeypatch.undo()
  assert len(builders.source(settings, 'train').rows) == 18


def test_what_a_killed_preparation_left_is_removed(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', numbered(20))
  settings = config(tmp_path, path=path)
  builders.source(settings, 'train')
  (whole,) = prepared(tmp_path)
  left = whole.with_name('incomplete.ABC_1.0.0')
  whole.rename(left)
  next(left.glob('*.array_record*')).write_bytes(b'half')
  builders._read.cache_clear()
  assert len(builders.source(settings, 'train').rows) == 18
  assert prepared(tmp_path) == [whole] and not left.exists()


def test_bad_rows_are_named_and_limited(tmp_path):
  rows = numbered(20)
  rows[4]['prompt'] = ''
  rows[7] = {'prompt': 'p', 'answer': None}
  rows[9]['prompt'] = ''
  path = jsonl(tmp_path / 'a.jsonl', rows)
  expected = {'prompt is empty': [5, 10], 'answer is missing': [8]}
  for _ in range(2):  # Prepared, then reused.
    source = builders.source(config(tmp_path, path=path), 'train')
    assert source.dropped == expected
    assert len(source.rows) == 16
  with pytest.raises(ConfigError) as caught:
    builders.source(config(tmp_path, path=path, max_dropped=0.1), 'train')
  assert str(caught.value).endswith(
    'a.jsonl: 3 of 20 rows are bad, more than data.max_dropped=0.1 allows;'
    ' the first: row 5: prompt is empty'
  )


def test_reasons_that_quote_their_row_are_bounded(tmp_path):
  lines = [f'{{"prompt": "p", "k{i}": 1, "k{i}": 2}}' for i in range(120)]
  rows = [*lines, *lines, *(json.dumps(row) for row in numbered(20))]
  (tmp_path / 'a.jsonl').write_text('\n'.join(rows))
  dropped = builders.source(
    config(tmp_path, path=str(tmp_path / 'a.jsonl'), max_dropped=1.0), 'train'
  ).dropped
  assert len(dropped) == 101
  assert dropped["has the key 'k0' twice"] == [1, 121]
  others = [*range(101, 121), *range(221, 241)]
  assert dropped['other reasons'] == others


CHAT = [
  {'role': 'system', 'content': 's'},
  {'role': 'user', 'content': 'ä'},
  {'role': 'assistant', 'content': 'a'},
  {'role': 'user', 'content': 'u'},
  {'role': 'assistant', 'content': '#### 1'},
]


def test_a_conversation_comes_back_as_written(tmp_path):
  path = jsonl(
    tmp_path / 'a.jsonl', [{'messages': CHAT}, {'messages': CHAT[1:3]}] * 10
  )
  one, other, *_ = builders.source(config(tmp_path, path=path), 'train').rows
  assert one == {
    'row': 1,
    'prompt': 'ä',
    'prompt_turns': CHAT[:2],
    'answer': '1',
    'expert': '#### 1',
    'expert_turns': CHAT[2:],
    'teacher': [],
  }
  assert other == {
    'row': 2,
    'prompt': 'ä',
    'answer': '',
    'expert': 'a',
    'teacher': [],
  }


def test_a_conversation_far_into_a_file_of_texts_is_a_bad_row(tmp_path):
  rows = [*numbered(1000), {'prompt': CHAT[:2], 'answer': '1'}]
  path = jsonl(tmp_path / 'a.jsonl', rows)
  source = builders.source(config(tmp_path, path=path), 'train')
  assert source.dropped == {
    'is a conversation, and the first rows are not': [1001]
  }


def test_a_file_of_bad_rows_only(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', [{'prompt': '', 'answer': '1'}] * 3)
  with pytest.raises(ConfigError, match='every row is bad; row 1: prompt is'):
    builders.source(config(tmp_path, path=path, max_dropped=1.0), 'train')
  assert not prepared(tmp_path)


def test_nothing_is_printed(tmp_path, capfd):
  path = jsonl(tmp_path / 'a.jsonl', numbered(20))
  builders.source(config(tmp_path, path=path), 'train')
  assert capfd.readouterr().out == ''


def test_gsm8k_needs_no_settings(tmp_path, shared):
  folder = shared / 'data/gsm8k'
  settings = config(tmp_path, path=str(folder / 'train.parquet'))
  train = builders.source(settings, 'train').rows
  test = builders.source(settings, 'test').rows
  assert (len(train), len(test)) == (7473 - 256, 256)
  assert train[0]['answer'] == '72'
  assert train[0]['expert'].endswith('#### 72')
  assert not {row['row'] for row in train} & {row['row'] for row in test}


def test_a_teacher_that_is_left_out_is_counted(tmp_path):
  rows = numbered(20)
  rows[3]['teacher'] = ['one', None]
  rows[5]['teacher'] = [' ', 'two', None]
  path = jsonl(tmp_path / 'a.jsonl', rows)
  settings = config(tmp_path, path=path, eval_path=path)
  for _ in range(2):  # Prepared, then reused.
    source = builders.source(settings, 'train')
    assert source.left_out == {
      'teacher is missing': [4, 6],
      'teacher is empty': [6],
    }
    assert not source.dropped and len(source.rows) == 20
    assert source.rows[5]['teacher'] == ['two']


def test_an_evaluation_file_needs_neither_expert_nor_teacher(tmp_path):
  rows = [{'q': 'p', 's': 'so 1', 'a': '1', 't': 'one'}] * 3
  path = jsonl(tmp_path / 'a.jsonl', rows)
  asked = [
    {'q': 'e', 'a': '2', 'teacher': []},
    {'q': 'f', 'a': '3', 'solution': None},
  ]
  eval_path = jsonl(tmp_path / 'e.jsonl', asked)
  settings = config(
    tmp_path,
    path=path,
    eval_path=eval_path,
    columns='prompt=q,answer=a,expert=s,teacher=t',
  )
  train = builders.source(settings, 'train')
  assert train.rows[0]['expert'] == 'so 1'
  assert train.roles['teacher'] == 't' and not train.unused
  test = builders.source(settings, 'test')
  assert [row['prompt'] for row in test.rows] == ['e', 'f']
  assert not test.dropped


def test_what_both_files_lack_is_said_at_once(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', [{'q': 'p', 'a': '1'}])
  settings = config(tmp_path, path=path, eval_path=str(tmp_path / 'b.jsonl'))
  with pytest.raises(ConfigError) as caught:
    builders.source(settings, 'train')
  line = str(caught.value)
  assert 'a.jsonl: no column for the prompt among q, a, and none for' in line
  assert 'data.eval_path: data file' in line and 'b.jsonl does not' in line


def test_a_prepared_dataset_serves_from_a_read_only_folder(unprivileged):
  folder, lower = unprivileged
  path = jsonl(folder / 'a.jsonl', numbered(20))
  settings = config(folder, path=path)
  arithmetic = config(folder)
  builders.source(settings, 'train')
  builders.source(arithmetic, 'train')
  before = sorted(folder.rglob('*'))
  builders._read.cache_clear()
  with lower():
    assert len(builders.source(settings, 'train').rows) == 18
    assert builders.source(arithmetic, 'train').rows
    # A file that is not prepared there.
    other = config(folder, path=path, columns='teacher=')
    with pytest.raises(ConfigError) as caught:
      builders.source(other, 'train')
  assert str(caught.value).startswith(f'data.cache={folder}/cache cannot be')
  assert 'set data.cache=DIR' in str(caught.value)
  assert sorted(folder.rglob('*')) == before


@pytest.mark.parametrize('place', ['none', 'file/below'])
def test_a_cache_that_cannot_be_made_is_one_line(unprivileged, place):
  folder, lower = unprivileged
  (folder / 'file').touch()
  path = jsonl(folder / 'a.jsonl', numbered(20))
  settings = config(folder, path=path, cache=str(folder / place))
  with lower(), pytest.raises(ConfigError) as caught:
    builders.source(settings, 'train')
  assert f'data.cache={folder}/{place} cannot be written' in str(caught.value)


def test_without_a_home_directory_the_cache_is_asked_for(tmp_path, monkeypatch):
  def nobody(uid):
    raise KeyError(uid)

  monkeypatch.delenv('HOME')
  monkeypatch.setattr(pwd, 'getpwuid', nobody)
  path = jsonl(tmp_path / 'a.jsonl', numbered(20))
  for settings in (DataConfig(path=path), DataConfig()):
    with pytest.raises(ConfigError) as caught:
      builders.source(settings, 'train')
    assert str(caught.value).startswith('data.cache=~/.cache/gft_jax: there is')
    assert 'set data.cache=DIR' in str(caught.value)
  assert builders.source(config(tmp_path, path=path), 'train').rows


@pytest.mark.parametrize(
  'settings', [{'eval_path': 'd.jsonl'}, {'columns': 'prompt=foo'}]
)
def test_settings_of_a_file_need_a_file(settings):
  for path in ('', 'arithmetic/verbose'):
    with pytest.raises(ConfigError, match=r'belongs to a file, and data.path'):
      builders.check(DataConfig(path=path, **settings), 'train')


def test_a_cache_is_a_local_folder():
  with pytest.raises(ConfigError, match=r'data.cache=gs://b is not a local'):
    builders.source(DataConfig(cache='gs://b'), 'test')
