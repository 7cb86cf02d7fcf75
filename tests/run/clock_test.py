"""What a run took: its phases, its memory, and what an interruption cost."""

import functools
import json
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
from recorded_runs import record

from gft_jax.run.clock import Clock, memory, read_past


def test_seconds_of_a_phase_exclude_compilation():
  clock = Clock()
  for _ in range(2):
    with clock.phase('update'):
      time.sleep(0.02)
  assert set(clock.record()) == {'time/update'}
  assert 0.04 <= clock.record()['time/update'] < 2

  x, clock = jnp.ones(7), Clock()
  start = time.perf_counter()
  with clock.phase('update'):
    jax.jit(lambda x: jnp.sort(jnp.sin(x)))(x).block_until_ready()
  spent = time.perf_counter() - start
  record = clock.record()
  assert record['memory/programs'] == 1
  assert record['time/compile'] > 0 < record['time/update']
  assert record['time/compile'] + record['time/update'] <= spent


def test_measurements_of_two_clocks_add_up():
  clock = Clock()
  clock.add('time/compile', 1.5)
  clock.add('time/save', 2.0)
  step = record(3, time__compile=0.25, train__loss=7.0)
  assert clock.added_to(step) == step | {'time/compile': 1.75, 'time/save': 2.0}


def test_memory_is_that_of_the_fullest_device(monkeypatch):
  assert set(memory()) == {'memory/host_peak_mb'}  # CPUs do not.
  devices = [
    types.SimpleNamespace(memory_stats=lambda peak=peak: peak)
    for peak in ({'peak_bytes_in_use': 2**21}, {'peak_bytes_in_use': 3 * 2**20})
  ]
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)
  assert memory()['memory/device_peak_mb'] == 3.0


def write_walls(workdir, *records):
  path = workdir / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))
  return [0, *np.cumsum([len(json.dumps(r)) + 1 for r in records])]


def test_an_interruption_costs_time_lost_and_time_down(tmp_path):
  """Killed after 17 s, three of them after the save, and away for 40."""
  begun = 1000.0
  assert read_past(tmp_path, 0, begun) == (begun, 0, 0)
  size = write_walls(
    tmp_path,
    {'time/begun': begun, 'time/wall': 8.0},
    {'time/wall': 14.0},
    {'time/wall': 17.0},
  )
  past = functools.partial(read_past, tmp_path)
  assert past(size[2], 1057.0) == (begun, 3, 40)
  assert past(size[3], 1057.0) == (begun, 0, 40)
  assert past(0, 1057.0) == (begun, 17, 40)  # before the first checkpoint
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"time/wa')  # A line cut by the kill.
  assert past(size[2], 1057.0) == (begun, 3, 40)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('\0\0\n')  # What a power cut leaves.
  assert past(size[2], 1057.0) == (begun, 3, 40)

  # Killed again, 5 s after it came back, before another checkpoint.
  write_walls(
    tmp_path,
    {'time/begun': begun, 'time/wall': 8.0},
    {'time/wall': 14.0},
    {
      'time/begun': begun,
      'time/wall': 62.0,
      'time/lost': 3.0,
      'time/down': 40.0,
    },
  )
  assert past(size[2], 1072.0) == (begun, 3 + 5, 40 + 10)
  # What was recorded already is not said again.
  assert past((tmp_path / 'metrics.jsonl').stat().st_size, 1072.0) == (
    begun,
    0,
    10,
  )


def test_a_run_without_wall_times_has_no_past(tmp_path):
  write_walls(tmp_path, {'stage': 'gft', 'step': 1})
  assert read_past(tmp_path, 0, 7.0) == (7.0, 0, 0)
