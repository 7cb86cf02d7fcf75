"""Every second of a run is on a record, and records come in their order."""

import json

import pytest

from gft_jax.run import recorder as recorder_lib
from gft_jax.run.recorder import Recorder
from gft_jax.run.writers import Writer


class Kept(Writer):
  """Keeps what it is told, and the size of a file that it says is safe."""

  def __init__(self):
    self.begun, self.records, self.safe = [], [], 0

  def begin(self, stage, steps, step, position):
    self.begun.append((stage, steps, step, position))

  def write(self, record):
    self.records.append(record)

  def position(self):
    return self.safe


class Time:
  """A clock that a test sets."""

  now = 1000.0

  def time(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Time()
  monkeypatch.setattr(recorder_lib, 'time', clock)
  return clock


@pytest.fixture
def writer():
  return Kept()


@pytest.fixture
def recorder(clock, writer, tmp_path):
  """A process that began at 1000."""
  return Recorder(writer, tmp_path, 1000.0)


def test_the_first_record_has_the_start_and_when_the_run_began(
  recorder, writer, clock
):
  clock.now = 1007.0
  recorder.begin_stage('gft', 5, 0)
  clock.now = 1012.0
  recorder.write({'stage': 'gft', 'step': 1, 'time/update': 4.0})
  recorder.write({'stage': 'gft', 'step': 2})
  assert writer.records == [
    {
      'stage': 'gft',
      'step': 1,
      'time/update': 4.0,
      'time/begun': 1000.0,
      'time/start': 7.0,
      'time/wall': 12.0,
    },
    {'stage': 'gft', 'step': 2, 'time/wall': 12.0},
  ]


def test_what_belongs_to_no_step_goes_to_the_next_record_alone(
  recorder, writer
):
  recorder.begin_stage('gft', 5, 0)
  recorder.write({'step': 1})
  recorder.unreported_times.add('time/save', 2.0)
  recorder.unreported_times.add('time/compile', 0.5)
  recorder.write({'step': 2, 'time/compile': 0.25})
  recorder.write({'step': 3})
  assert writer.records[1:] == [
    {'step': 2, 'time/save': 2.0, 'time/compile': 0.75, 'time/wall': 0.0},
    {'step': 3, 'time/wall': 0.0},
  ]


def test_the_start_of_a_stage_is_counted_from_the_end_of_the_one_before(
  recorder, writer, clock
):
  recorder.begin_stage('base', 5, 0)
  clock.now = 1020.0
  recorder.write({'step': 5})
  recorder.end_stage()
  clock.now = 1023.0
  recorder.begin_stage('gft', 5, 0)
  clock.now = 1030.0
  recorder.write({'step': 1})
  # Neither the past nor the beginning of the run is said twice.
  assert writer.records[1] == {
    'step': 1,
    'time/start': 3.0,
    'time/wall': 30.0,
  }


def test_a_process_that_goes_on_says_what_the_interruption_cost(
  recorder, writer, clock, tmp_path
):
  """The run began at 900 and died at 960, 20 s after what is valid."""
  kept = json.dumps({'time/begun': 900.0, 'time/wall': 40.0}) + '\n'
  lost = json.dumps({'time/wall': 60.0}) + '\n'
  file = tmp_path / 'metrics.jsonl'
  file.write_text(kept + lost)
  # As metrics.jsonl is: once a stage begins, what is void is cut away.
  writer.begin = lambda *_: file.write_text(kept)
  recorder.valid_bytes = len(kept)
  clock.now = 1005.0
  recorder.begin_stage('gft', 5, 2)
  clock.now = 1006.0
  recorder.write({'step': 3})
  assert writer.records == [
    {
      'step': 3,
      'time/begun': 900.0,
      'time/lost': 20.0,
      'time/down': 40.0,
      'time/start': 5.0,
      'time/wall': 106.0,
    }
  ]


def test_a_stage_begins_with_the_bytes_that_are_valid(recorder, writer):
  recorder.begin_stage('base', 5, 0)
  writer.safe = 123
  assert recorder.vouch() == recorder.valid_bytes == 123
  recorder.begin_stage('gft', 7, 3)
  recorder.valid_bytes = 45  # as a checkpoint says when it is restored
  recorder.begin_stage('grpo', 9, 1)
  assert writer.begun == [
    ('base', 5, 0, 0),
    ('gft', 7, 3, 123),
    ('grpo', 9, 1, 45),
  ]


def test_a_deferred_record_is_read_and_written_when_the_next_is_deferred(
  recorder, writer
):
  def reader(step):
    def read():
      order.append(f'read {step}')
      return {'step': step}

    return read

  order = []
  writer.write = lambda record: order.append(f'write {record["step"]}')
  recorder.begin_stage('gft', 5, 0)
  recorder.defer(reader(1))
  assert order == []
  recorder.defer(reader(2))
  assert order == ['read 1', 'write 1']
  recorder.flush()
  recorder.flush()  # There is nothing left.
  assert order == ['read 1', 'write 1', 'read 2', 'write 2']


def test_a_deferred_record_that_cannot_be_read_is_not_read_again(
  recorder, writer
):
  def broken():
    raise FloatingPointError('nan')

  recorder.begin_stage('gft', 5, 0)
  recorder.defer(broken)
  with pytest.raises(FloatingPointError):
    recorder.flush()
  recorder.flush()
  assert writer.records == []


def test_a_record_before_any_stage_is_an_error(recorder, writer):
  with pytest.raises(RuntimeError, match='no stage has begun'):
    recorder.write({'step': 1})
  assert writer.records == []
