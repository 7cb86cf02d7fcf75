"""Traces of named steps, read back."""

import jax
import jax.numpy as jnp
import pytest

from gft_jax.run import profiling
from gft_jax.run.clock import Clock


@jax.jit
def program(x):
  with jax.named_scope('group_advantages'):
    return jnp.tanh(x @ x)


def trace_of(folder):
  """(the protocol buffer of the one trace, {annotation: [step_num]})."""
  (path,) = folder.glob('plugins/profile/*/*.xplane.pb')
  (viewer,) = folder.glob('plugins/profile/*/*.trace.json.gz')
  assert viewer.stat().st_size > 100
  found = {}
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    for line in plane.lines:
      for event in line.events:
        numbers = dict(event.stats)
        found.setdefault(event.name, []).append(numbers.get('step_num'))
  return path.read_bytes(), found


def run(profiler, stage, steps):
  clock = Clock()
  for step in range(1, steps + 1):
    with profiler.step(stage, step):
      with clock.phase('update'):
        program(jnp.ones((64, 64))).block_until_ready()


def test_a_trace_has_its_steps_their_phases_and_the_named_scopes(tmp_path):
  profiler = profiling.Profiler(tmp_path, '2..3')
  run(profiler, 'sft', 5)
  trace, found = trace_of(tmp_path / 'sft')
  assert found['step'] == [2, 3]
  assert len(found['update']) == 2
  assert b'group_advantages' in trace
  run(profiler, 'gft', 2)  # The stage ends before the trace does.
  assert not (tmp_path / 'gft').exists()
  profiler.close()
  assert trace_of(tmp_path / 'gft')[1]['step'] == [2]


def test_of_one_stage_alone(tmp_path):
  profiler = profiling.Profiler(tmp_path, 'gft:1..9')
  for stage in ('sft', 'gft'):
    run(profiler, stage, 1)
  run(profiler, 'grpo', 1)  # Not traced, but gft is over.
  assert trace_of(tmp_path / 'gft')[1]['step'] == [1]
  profiler.close()
  assert [path.name for path in tmp_path.iterdir()] == ['gft']


def test_an_open_trace_ends_where_the_next_one_begins(tmp_path):
  profiler = profiling.Profiler(tmp_path, '1..9')
  for stage in ('sft', 'gft'):
    run(profiler, stage, 2)
  profiler.close()
  for stage in ('sft', 'gft'):
    assert trace_of(tmp_path / stage)[1]['step'] == [1, 2]


@pytest.mark.parametrize(('index', 'written'), [(0, ['gft']), (1, [])])
def test_process_0_alone_traces(tmp_path, monkeypatch, index, written):
  monkeypatch.setattr(jax, 'process_index', lambda: index)
  profiler = profiling.Profiler(tmp_path, '1..1')
  run(profiler, 'gft', 1)
  assert [path.name for path in tmp_path.iterdir()] == written
