"""Runs of several real processes on one machine, on one global mesh.

Eight virtual CPU devices in all, whoever holds them; gloo between processes.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from small_runs import hearing_signals

from gft_jax.config import Config, Stage, override, to_dict
from gft_jax.data import arithmetic
from gft_jax.loop import train
from gft_jax.policy import load_policy
from gft_jax.run import writers

ROOT = pathlib.Path(__file__).parents[1]
DEVICES = 8

# Sums over 8 devices of one process are added in another order.
TOLERANCE = {'rtol': 1e-4, 'atol': 1e-6}

RECIPE = """
import json, pathlib
from gft_jax.config import Config, from_dict
text = pathlib.Path(__file__).with_suffix('.json').read_text()
get_config = lambda: from_dict(Config, json.loads(text))
"""


@pytest.fixture(scope='module')
def recipe(config) -> Config:
  """One stage with every origin, refilled groups and evaluations."""
  for assignment in (
    'data.batch_size=8',
    # Parameters are split over all processes, as on a pod.
    'mesh.fsdp=8',
    'reward.function=reward_functions:uneven + 0 * length',
    'checkpoint.keep=9',
    'eval.every=2',
    'eval.batch_size=8',
    # Of the last batch some processes of four have no row.
    'eval.prompts=13',
    'eval.kl_prompts=9',
    'eval.base=',
  ):
    config = override(config, assignment)
  stage = Stage('gft', '', 'gft', 4, ('group.refills=1',))
  return dataclasses.replace(config, stages=(stage,))


def free_port() -> int:
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


class Processes:
  """The same command in `count` processes that know of each other."""

  def __init__(self, config: Config, workdir: pathlib.Path, count: int):
    file = workdir.with_suffix('.py')
    file.write_text(RECIPE)
    file.with_suffix('.json').write_text(json.dumps(to_dict(config)))
    environment = os.environ | {
      'PYTHONPATH': f'{ROOT}:{ROOT}/tests',
      'XLA_FLAGS': (
        f'--xla_force_host_platform_device_count={DEVICES // count}'
        ' --xla_backend_optimization_level=0'
        ' --xla_cpu_use_fusion_emitters=false'
      ),
      'JAX_COORDINATOR_ADDRESS': f'localhost:{free_port()}',
      'JAX_NUM_PROCESSES': str(count),
    }
    command = [sys.executable, 'experiments/train.py']
    command += ['--config', str(file), '--workdir', str(workdir)]
    self._metrics = workdir / 'metrics.jsonl'
    self._logs = [workdir.with_suffix(f'.{i}.log') for i in range(count)]
    self.children = [
      subprocess.Popen(
        hearing_signals(command),
        cwd=ROOT,
        env=environment | {'JAX_PROCESS_ID': str(index)},
        stdout=log.open('w'),
        stderr=subprocess.STDOUT,
      )
      for index, log in enumerate(self._logs)
    ]

  def wait(self, timeout: float = 600) -> list[int]:
    """Exit codes; a process that is still there is killed and fails."""
    deadline = time.monotonic() + timeout
    try:
      return [
        child.wait(timeout=max(0, deadline - time.monotonic()))
        for child in self.children
      ]
    finally:
      for child in self.children:
        child.kill()

  def signal_at(self, step: int, index: int, number: int) -> None:
    """Sends a signal to one process when the metrics show the step."""
    deadline = time.monotonic() + 600
    mark = f'"step": {step}, '
    while not (self._metrics.exists() and mark in self._metrics.read_text()):
      assert all(child.poll() is None for child in self.children), self.said(0)
      assert time.monotonic() < deadline
      time.sleep(0.02)
    self.children[index].send_signal(number)

  def said(self, index: int) -> list[str]:
    """Lines of a process, without those of the runtime as it starts."""
    lines = self._logs[index].read_text().splitlines()
    # Threads of gloo write into each other's lines: a number may stand alone.
    noise = re.compile(r'^\[Gloo\]|peer ranks|spmd_partitioner|^[\d\s]*$')
    return [line for line in lines if not noise.search(line)]


def records(workdir):
  return [
    {k: v for k, v in r.items() if not k.startswith(('time/', 'memory/'))}
    for r in writers.read_metrics(workdir)
  ]


def assert_close(found, expected):
  assert len(found) == len(expected)
  for a, b in zip(found, expected):
    assert a.keys() == b.keys()
    for name, value in b.items():
      if isinstance(value, str):
        assert a[name] == value
      else:
        np.testing.assert_allclose(
          a[name], value, **TOLERANCE, err_msg=f'{name} at step {b["step"]}'
        )


def cut_back(workdir, copy, step):
  """A copy of the run as a kill after the checkpoint of `step` leaves it."""
  shutil.copytree(workdir, copy)
  for folder in (copy / 'checkpoints/gft').iterdir():
    if int(folder.name) > step:
      shutil.rmtree(folder)


@pytest.mark.slow
def test_two_processes_train_as_one_does(recipe, tmp_path):
  """Demonstrations alone, which compile fast."""
  given = ('group.samples=0', 'group.teachers=0', 'eval.splits=()')
  stage = Stage('gft', '', 'sft', 2, given)
  recipe = dataclasses.replace(recipe, stages=(stage,))
  two = Processes(recipe, tmp_path / 'two', 2)
  train(recipe, tmp_path / 'one')
  assert two.wait() == [0, 0], two.said(0)
  assert_close(records(tmp_path / 'two'), records(tmp_path / 'one'))
  assert len(records(tmp_path / 'one')) == 3
  assert two.said(1) == []  # Process 0 speaks for all.


@pytest.fixture(scope='module')
def finished(recipe, tmp_path_factory):
  """Number of processes -> workdir of a finished run."""
  workdirs = {}
  for count in (1, 2, 4):
    workdirs[count] = tmp_path_factory.mktemp('finished') / f'run{count}'
    run = Processes(recipe, workdirs[count], count)
    assert run.wait() == [0] * count, run.said(0)
  return workdirs


@pytest.mark.slow
def test_metrics_do_not_depend_on_who_holds_the_devices(finished):
  two = records(finished[2])
  assert [(r['step'], 'eval/entropy' in r) for r in two] == [
    *((step, False) for step in (1, 2)),
    (2, True),
    *((step, False) for step in (3, 4)),
    (4, True),
  ]
  assert two == records(finished[4])
  shown = 'report/groups/gft.json'
  assert (finished[2] / shown).read_text() == (finished[4] / shown).read_text()
  assert_close(two, records(finished[1]))
  for count, workdir in finished.items():
    for part in ('params', 'rest'):
      folder = workdir / f'checkpoints/gft/00000004/{part}/state'
      written = {
        process.name: sum(path.stat().st_size for path in process.rglob('d/*'))
        for process in folder.glob('ocdbt.process_*')
      }
      names = {f'ocdbt.process_{i}' for i in range(count)}
      assert written.keys() == names and min(written.values()) > 0
  # What each process counts for itself is there, and not trivial.
  assert any(r.get('train/refills') for r in two)
  assert any(r.get('train/reward_failures/error') for r in two)
  assert any(r.get('eval/test/reward_failures/error') for r in two)


@pytest.mark.slow
def test_two_processes_run_what_a_user_brings(recipe, tmp_path):
  """A folder, a file, grader workers, and rollouts in a layout of their own."""
  from gft_jax import huggingface

  policy = load_policy(recipe)
  huggingface.save(tmp_path / 'model', *policy[:3])
  rows = itertools.islice(arithmetic.rows('train'), 64)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (tmp_path / 'rows.jsonl').write_text(text)
  for assignment in (
    f'model.path={tmp_path}/model',
    f'data.path={tmp_path}/rows.jsonl',
    f'data.cache={tmp_path}/cache',
    'reward.workers=1',
    'mesh.rollout_tensor=2',
    'eval.splits=()',
  ):
    recipe = override(recipe, assignment)
  recipe = dataclasses.replace(recipe, stages=(Stage('gft', '', 'gft', 2),))
  two = Processes(recipe, tmp_path / 'two', 2)
  assert two.wait() == [0, 0], two.said(0)
  one = Processes(recipe, tmp_path / 'one', 1)
  assert one.wait() == [0], one.said(0)
  assert_close(records(tmp_path / 'two'), records(tmp_path / 'one'))
  assert [r['step'] for r in records(tmp_path / 'two')] == [0, 1, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(('before', 'after'), [(4, 1), (1, 4)])
def test_a_checkpoint_resumes_on_another_number_of_processes(
  recipe, finished, tmp_path, before, after
):
  cut_back(finished[before], tmp_path / 'run', 2)
  run = Processes(recipe, tmp_path / 'run', after)
  assert run.wait() == [0] * after, run.said(0)
  found, whole = records(tmp_path / 'run'), records(finished[before])
  assert found[:3] == whole[:3]
  assert_close(found, whole)


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'victim'), [(2, 0), (2, 1), (4, 3)])
def test_a_killed_process_stops_the_others_and_the_relaunch_resumes(
  recipe, finished, tmp_path, count, victim
):
  """Whoever has lost process 0 is ended by the runtime, with its own words."""
  workdir = tmp_path / 'run'
  run = Processes(recipe, workdir, count)
  run.signal_at(3, victim, signal.SIGKILL)
  start = time.monotonic()
  codes = run.wait(timeout=90)
  assert (
    time.monotonic() - start < 75
  )  # processes.HEARTBEAT and its neighbours.
  assert codes[victim] == -signal.SIGKILL
  for survivor in set(range(count)) - {victim}:
    text = '\n'.join(run.said(survivor))
    if codes[survivor] == 1:
      assert text.count('stopped: ') == 1
      assert 'cannot reach another process of the run' in text
    else:
      assert victim == 0 and codes[survivor] == -signal.SIGABRT
      assert 'another task died' in text
  again = Processes(recipe, workdir, count)
  assert again.wait() == [0] * count, again.said(0)
  assert records(workdir) == records(finished[count])


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others_in_bounded_time(recipe, tmp_path):
  """No connection closes: its heartbeats stay away."""
  run = Processes(recipe, tmp_path / 'run', 2)
  run.signal_at(3, 1, signal.SIGSTOP)
  start = time.monotonic()
  first, second = run.children
  try:
    assert first.wait(timeout=90) in (1, -signal.SIGABRT)
    assert time.monotonic() - start < 75  # processes.HEARTBEAT and a step.
    assert second.poll() is None
  finally:
    first.kill()
    second.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('index', 'number'), [(0, signal.SIGINT), (1, signal.SIGTERM)]
)
def test_a_signal_to_one_process_saves_all_at_one_step(
  recipe, finished, tmp_path, index, number
):
  workdir = tmp_path / 'run'
  run = Processes(recipe, workdir, 2)
  run.signal_at(2, index, number)
  assert run.wait(timeout=120) == [128 + number] * 2
  first, second = (
    [line for line in run.said(i) if line.startswith('stopped: ')]
    for i in range(2)
  )
  assert first == second
  (line,) = first
  step = int(line.partition('saved at step ')[2].partition(';')[0])
  assert (workdir / f'checkpoints/gft/{step:08d}/manifest.json').exists()
  again = Processes(recipe, workdir, 2)
  assert again.wait() == [0, 0], again.said(0)
  assert records(workdir) == records(finished[2])


ALONE = """
import sys
sys.path.insert(0, 'experiments')
import command

def work():
  import jax
  from gft_jax.config import ConfigError
  from gft_jax.parallel.processes import barrier, initialize_processes

  initialize_processes()
  if jax.process_index() == 1:
    raise ConfigError('only here')
  barrier()

sys.exit(command.run(work))
"""


@pytest.mark.slow
def test_a_mistake_that_one_process_sees_ends_all_of_them():
  address = f'localhost:{free_port()}'
  children = [
    subprocess.Popen(
      [sys.executable, '-c', ALONE],
      cwd=ROOT,
      env=os.environ
      | {
        'PYTHONPATH': str(ROOT),
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': str(index),
      },
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  _, error = children[1].communicate(timeout=60)
  assert children[1].returncode == 2 and 'error: only here' in error
  assert children[0].wait(timeout=75) != 0


# What Slurm does: a process for each task with its number, and SIGTERM to all.
SRUN = """#!/usr/bin/env bash
[ "$1" = --kill-on-bad-exit=0 ] || exit 3
shift
children=()
for index in 0 1; do
  SLURM_PROCID=$index SLURM_LOCALID=$index "$@" & children+=($!)
done
trap 'kill -TERM "${children[@]}"' TERM
code=0
for child in "${children[@]}"; do
  while :; do
    if wait "$child"; then status=0; else status=$?; fi
    kill -0 "$child" 2>/dev/null || break
  done
  [ "$status" = 0 ] || code=$status
done
exit "$code"
"""


def launched(script, tmp_path):
  """The start of a command for two processes, and its environment."""
  environment = os.environ | {
    'PYTHON': sys.executable,
    'PYTHONPATH': f'{ROOT}:{ROOT}/tests',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
  }
  if script == 'local.sh':
    address = {'JAX_COORDINATOR_ADDRESS': f'localhost:{free_port()}'}
    return ['experiments/pods/local.sh', '2'], environment | address
  (tmp_path / '.venv').symlink_to(sys.prefix)
  (tmp_path / 'experiments').symlink_to(ROOT / 'experiments')
  srun = tmp_path / 'bin/srun'
  srun.parent.mkdir()
  srun.write_text(SRUN)
  srun.chmod(0o755)
  # Of it JAX makes the port of process 0, above those that a kernel gives.
  job = random.randrange(2**12)
  return ['experiments/pods/slurm.sh'], environment | {
    'PATH': f'{srun.parent}:{os.environ["PATH"]}',
    'SLURM_JOB_ID': str(job),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_STEP_NUM_NODES': '1',
    'SLURM_NTASKS': '2',
  }


@pytest.mark.slow
@pytest.mark.parametrize('script', ['local.sh', 'slurm.sh'])
def test_a_script_runs_two_processes_and_hands_sigterm_on(
  script, recipe, tmp_path
):
  given = ('group.samples=0', 'group.teachers=0', 'eval.splits=()')
  stage = Stage('gft', '', 'sft', 40, given)
  recipe = dataclasses.replace(recipe, stages=(stage,))
  file = tmp_path / 'run.py'
  file.write_text(RECIPE)
  file.with_suffix('.json').write_text(json.dumps(to_dict(recipe)))
  start, environment = launched(script, tmp_path)
  cwd = ROOT if script == 'local.sh' else tmp_path
  command = [*start, '--config', str(file), '--workdir', str(tmp_path / 'run')]
  log, metrics = tmp_path / 'log', tmp_path / 'run/metrics.jsonl'
  with log.open('w') as file:
    run = subprocess.Popen(command, cwd=cwd, env=environment, stderr=file)
  try:
    deadline = time.monotonic() + 300
    while not (metrics.exists() and '"step": 2, ' in metrics.read_text()):
      assert run.poll() is None and time.monotonic() < deadline, log.read_text()
      time.sleep(0.02)
  finally:
    run.send_signal(signal.SIGTERM)
  assert run.wait(timeout=120) == 128 + signal.SIGTERM, log.read_text()
  error = log.read_text()
  assert error.count('stopped: ') == 2
  step = int(error.partition('saved at step ')[2].partition(';')[0])
  assert step < 40
  # The same command goes on.
  assert subprocess.run(command, cwd=cwd, env=environment).returncode == 0
  steps = [r['step'] for r in records(tmp_path / 'run') if 'train/loss' in r]
  assert steps == list(range(1, 41))
  # What one process refuses both refuse, and so does the script.
  command[-1] = str(tmp_path / 'other')
  command += ['--set', 'mesh.fsdp=4']
  found = subprocess.run(
    command, cwd=cwd, env=environment, capture_output=True, text=True
  )
  assert found.returncode == 2
  assert 'processes must use all of them' in found.stderr
