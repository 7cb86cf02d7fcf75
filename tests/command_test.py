"""What the scripts of experiments/ share: how they end, and what they accept."""

import argparse
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from small_runs import hearing_signals

from gft_jax.config import ConfigError

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
    hearing_signals([sys.executable, str(script)]),
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


@pytest.fixture
def command(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))
  import command

  return command


def parsed(command, *arguments):
  parser = command.parser('A script.')
  parser.add_argument('--prompt', nargs='+', action='extend')
  parser.add_argument('--samples', type=int, default=1)
  parser.add_argument('--best', action='store_true')
  command.add_set(parser, 'settings')
  return parser.parse_args(command.with_texts(list(arguments), '--prompt'))


@pytest.mark.parametrize(
  ('arguments', 'prompts'),
  [
    (['--prompt', 'a', 'b'], ['a', 'b']),
    (['--prompt', '-3+5:'], ['-3+5:']),
    (['--prompt', 'a', '-1 x', '--samples', '2'], ['a', '-1 x']),
    (['--prompt', '-3', '--prompt', '--3'], ['-3', '--3']),
    (['--prompt=--why', '--best', '--prompt', 'b=c'], ['--why', 'b=c']),
    (['--samples', '2', '--prompt', ''], ['']),
  ],
)
def test_a_prompt_may_begin_with_a_dash(command, arguments, prompts):
  assert parsed(command, *arguments).prompt == prompts


def test_a_flag_that_does_not_add_up_is_given_once(command, capsys):
  for _ in range(2):  # A parser may be used again.
    assert parsed(command, '--samples', '2').samples == 2
  both = parsed(command, '--set', 'a=1', '--set', 'b=2', '--best', '--best')
  assert both.set == ['a=1', 'b=2']
  with pytest.raises(SystemExit) as ended:
    parsed(command, '--samples', '1', '--samples=1')
  assert ended.value.code == 2
  assert '--samples is given twice' in capsys.readouterr().err


def test_a_place_may_be_in_the_home_directory(command, monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  parser = command.parser('A script.')
  parser.add_argument('--out')
  parser.add_argument('--compare', nargs=2)
  parser.add_argument('--stage')
  given = ['--out=~/a', '--compare', '~/b', 'c', '--stage', '~/d']
  found = parser.parse_args(given)
  assert found.out == str(tmp_path / 'a')
  assert found.compare == [str(tmp_path / 'b'), 'c']
  assert found.stage == '~/d'


@pytest.mark.parametrize('place', ['gs://b/a', 's3://b', 'gs:/b/a'])
def test_a_bucket_is_no_place_to_write(command, place):
  with pytest.raises(ConfigError, match=r'--out .* is not a local folder'):
    command.check_writable('--out', place)


def test_a_benchmark_offers_the_shapes_that_there_are(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))
  from speed import models

  parser = argparse.ArgumentParser()
  models.add_flags(parser)
  (offered,) = [x.choices for x in parser._actions if x.dest == 'preset']
  assert {'SMOLLM2_135M', 'QWEN2_5_0_5B'} <= set(offered)
  for name in offered:
    options = argparse.Namespace(preset=name)
    assert models.block_parameters(models.shape(options)) > 0
