"""What the scripts of experiments/ share: how they end, and what they accept."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# A module that is imported while Ctrl-C comes, and swallows whatever it raises.
SWALLOWS = """
import os, signal
try:
  os.kill(os.getpid(), signal.SIGINT)
  for _ in range(10**8):
    pass
except BaseException:
  pass
"""


def call(folder, work):
  """What a process says and returns that calls command.run with this work."""
  script = folder / 'script.py'
  script.write_text(
    f'import sys\nimport command\n\n\ndef work():\n  {work}\n\n\n'
    'sys.exit(command.run(work))\n'
  )
  path = f'{ROOT}:{ROOT / "experiments"}:{folder}'
  return subprocess.run(
    [sys.executable, str(script)],
    env=os.environ | {'PYTHONPATH': path},
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.mark.parametrize(
  'work',
  [
    'import swallows; print("went on")',
    'import threading, swallows; print("went on")',
    'exec(open(__import__("swallows").__file__).read())',
  ],
)
def test_one_ctrl_c_ends_a_script_also_inside_an_import(tmp_path, work):
  (tmp_path / 'swallows.py').write_text(SWALLOWS)
  done = call(tmp_path, work)
  assert (done.returncode, done.stdout) == (128 + signal.SIGINT, '')
  assert done.stderr == 'stopped by hand\n'


def test_ctrl_c_that_comes_while_jax_is_imported(tmp_path):
  """A module jax that has not got as far as jax.distributed."""
  (tmp_path / 'jax.py').write_text(SWALLOWS)
  done = call(tmp_path, 'import jax; print("went on")')
  assert (done.returncode, done.stderr) == (130, 'stopped by hand\n')


def test_what_takes_the_signal_itself_has_it(tmp_path):
  done = call(
    tmp_path,
    'import os, signal; from gft_jax.run import signals\n'
    '  with signals.stop_requests() as request:\n'
    '    os.kill(os.getpid(), signal.SIGINT)\n'
    '    raise signals.Preempted(request.number, "saved")',
  )
  assert done.returncode == 130
  assert done.stderr.endswith('\nstopped: Ctrl-C: saved\n')
