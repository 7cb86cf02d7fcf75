"""Writers: what is on disk is what was measured, and a resume leaves no trace."""

import json
import math
import sys
import types

import numpy as np
import pytest
from recorded_runs import record
from tensorboardX.proto import event_pb2

from gft_jax.config import ConfigError, LogConfig
from gft_jax.run import writers

QUIET = LogConfig(progress=False, tensorboard=False)


def test_floats_come_back_bit_for_bit(tmp_path):
  values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.0**60]
  values += [float(np.float32(0.1)), math.nextafter(1, 2)]
  writer = writers.make_writer(tmp_path, QUIET)
  writer.begin('gft', len(values), 0, 0)
  for step, value in enumerate(values, 1):
    writer.write(record(step, train__loss=value))
  writer.close()
  read = [r['train/loss'] for r in writers.read_metrics(tmp_path)]
  assert [v.hex() for v in read] == [v.hex() for v in values]


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused(tmp_path, value):
  writer = writers.MetricsFile(tmp_path)
  with pytest.raises(ValueError, match='not JSON compliant'):
    writer.write(record(1, train__loss=value))
  assert writer.position() == 0


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path):
  def run(workdir, interrupted):
    workdir.mkdir()
    writer = writers.make_writer(workdir, QUIET)
    writer.begin('gft', 4, 0, 0)
    for step in (1, 2):
      writer.write(record(step, train__loss=step / 3))
    position = writer.position()
    if interrupted:
      writer.write(record(3, train__loss=99.0))
      writer.close()
      with (workdir / 'metrics.jsonl').open('a') as file:
        file.write('{"stage": "gft", "st')  # a line cut by a kill
      writer = writers.make_writer(workdir, QUIET)
      writer.begin('gft', 4, 2, position)
      assert writer.position() == position
    for step in (3, 4):
      writer.write(record(step, train__loss=step / 3))
    writer.close()
    return (workdir / 'metrics.jsonl').read_bytes()

  plain = run(tmp_path / 'plain', interrupted=False)
  assert run(tmp_path / 'cut', interrupted=True) == plain
  assert len(plain.splitlines()) == 4


def test_each_record_is_on_disk_at_once(tmp_path):
  writer = writers.MetricsFile(tmp_path)
  writer.write(record(1))
  path = tmp_path / 'metrics.jsonl'
  assert json.loads(path.read_text()) == record(1)
  assert writer.position() == path.stat().st_size
  writer.close()


def test_a_file_shorter_than_the_checkpoint_is_refused(tmp_path):
  writer = writers.MetricsFile(tmp_path)
  writer.write(record(1))
  size = writer.position()
  with pytest.raises(ConfigError, match=f'{size} bytes.* {size + 1};'):
    writer.begin('gft', 2, 1, size + 1)
  assert writer.position() == size


def test_reading_leaves_out_a_cut_line_and_names_a_missing_file(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2')
  assert writers.read_metrics(tmp_path) == [{'step': 1}]
  with pytest.raises(ConfigError, match=r'nowhere.metrics.jsonl'):
    writers.read_metrics(tmp_path / 'nowhere')


def events(directory):
  """[(step, tag, value)], and the steps from which a restart purges."""
  scalars, purges = [], []
  for path in sorted(directory.glob('events*')):
    for data in _frames(path.read_bytes()):
      event = event_pb2.Event.FromString(data)
      scalars += [
        (event.step, v.tag, v.simple_value) for v in event.summary.value
      ]
      if event.HasField('session_log'):
        purges.append(event.step)
  return scalars, purges


def _frames(data):
  """TFRecord: length (8 bytes), checksum (4), payload, checksum (4)."""
  while data:
    size = int.from_bytes(data[:8], 'little')
    yield data[12 : 12 + size]
    data = data[16 + size :]


def test_tensorboard_has_a_folder_a_stage_and_purges_on_resume(tmp_path):
  writer = writers.TensorBoard(tmp_path)
  for stage in ('sft', 'gft'):
    writer.begin(stage, 9, 5, 0)
    writer.write(record(6, train__loss=0.5, train__reward=0.25))
  writer.close()
  for stage in ('sft', 'gft'):
    scalars, purges = events(tmp_path / 'tensorboard' / stage)
    assert scalars == [(6, 'train/loss', 0.5), (6, 'train/reward', 0.25)]
    assert purges == [6]


def test_the_bar_counts_steps_and_goes_to_stderr(capsys):
  bar = writers.ProgressBar()
  bar.begin('gft', 10, 4, 0)
  bar.write(record(7, train__loss=0.125))
  bar.write(record(7, eval__kl_to_base=1.0))
  bar.begin('grpo', 2, 0, 0)
  bar.close()
  out, err = capsys.readouterr()
  assert not out
  assert 'gft:  70%' in err and '7/10' in err and 'loss=0.125' in err
  assert 'grpo:' in err and '0/2' in err


def test_wandb_must_be_installed(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ConfigError, match='pip install wandb'):
    writers.make_writer(tmp_path, LogConfig(wandb=True))
  assert not list(tmp_path.iterdir())
  with pytest.raises(ConfigError, match='pip install wandb'):
    writers.check_writers(LogConfig(wandb=True))
  writers.check_writers(LogConfig(wandb=False))


@pytest.mark.parametrize(
  ('body', 'message'),
  [
    ('import torch_xyz', "cannot be imported .No module named 'torch_xyz'"),
    ('import json\nfrom json import nothing', 'cannot be imported'),
    ('raise OSError("no libwandb")', 'refuses .no libwandb'),
    (
      'def login(): raise ValueError("No API key\\n configured")',
      'refuses .No API key configured.; `wandb login`, or WANDB_MODE=offline',
    ),
    ('def login(): raise RuntimeError', 'refuses .RuntimeError'),
    ('def login(): return False', 'refuses .not logged in'),
  ],
)
def test_wandb_that_is_broken_or_has_no_key_is_one_line(
  tmp_path, monkeypatch, body, message
):
  (tmp_path / 'wandb.py').write_text(body)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'wandb', raising=False)
  with pytest.raises(ConfigError, match=message) as error:
    writers.check_writers(LogConfig(wandb=True))
  assert '\n' not in str(error.value)
  sys.modules.pop('wandb', None)


def test_wandb_logs_each_stage_on_its_own_axis(tmp_path, monkeypatch):
  logged, begun = [], []
  run = types.SimpleNamespace(
    define_metric=lambda *a, **k: begun.append((a, k)),
    log=logged.append,
    finish=lambda: logged.append('finished'),
  )
  ids = []
  fake = types.SimpleNamespace(init=lambda **k: ids.append(k['id']) or run)
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  for _ in range(2):
    writer = writers.WeightsAndBiases(tmp_path)
  writer.begin('gft', 3, 0, 0)
  writer.write(record(1, train__loss=0.5))
  writer.close()
  assert ids[0] == ids[1]
  assert begun == [(('gft/*',), {'step_metric': 'gft/step'})]
  assert logged == [{'gft/step': 1, 'gft/train/loss': 0.5}, 'finished']


def test_wandb_that_breaks_later_stops_no_run(tmp_path, monkeypatch, caplog):
  def broken(*unused):
    raise OSError('gone')

  run = types.SimpleNamespace(log=broken, finish=broken)
  fake = types.SimpleNamespace(init=lambda **_: run)
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  writer = writers.WeightsAndBiases(tmp_path)
  for step in (1, 2):
    writer.write(record(step, train__loss=0.5))
  writer.close()
  assert caplog.messages == ['W&B takes no more records: gone']


def test_all_writers_take_the_same_records(tmp_path, capsys):
  writer = writers.make_writer(tmp_path, LogConfig())
  writer.begin('gft', 1, 0, 0)
  writer.write(record(1, train__loss=0.5))
  assert writer.position() == (tmp_path / 'metrics.jsonl').stat().st_size
  writer.close()
  assert '1/1' in capsys.readouterr().err
  assert events(tmp_path / 'tensorboard/gft')[0] == [(1, 'train/loss', 0.5)]
  assert writers.read_metrics(tmp_path) == [record(1, train__loss=0.5)]


def test_the_null_writer_takes_everything():
  writer = writers.Writer()
  writer.begin('gft', 1, 0, 0)
  writer.write(record(1))
  assert writer.position() == 0
  writer.close()
