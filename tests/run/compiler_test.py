"""What compilations take is known, and what they have freed is returned."""

import os
import pathlib
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from gft_jax.run import compiler

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from gft_jax.run import compiler
if sys.argv[1] == 'returned':
  compiler.return_freed_memory()
  compiler.return_freed_memory()
compiler.LONG_S = 0

def program(x):
  for i in range(60):
    x = jnp.sin(x).sum(axis=0) + jnp.cos(x) * i
  return x

jax.jit(jax.grad(lambda x: program(x).sum())).lower(jnp.ones((8, 8))).compile()
with open('/proc/self/statm') as file:
  print(int(file.read().split()[1]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc alone')
@pytest.mark.slow
def test_freed_memory_is_returned():
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}

  def pages(how):
    done = subprocess.run(
      [sys.executable, '-c', PROGRAM, how],
      cwd=ROOT,
      env=environment,
      check=True,
      capture_output=True,
    )
    return int(done.stdout)

  assert pages('returned') < 0.9 * pages('kept')


def test_a_program_counts_when_it_is_made_and_not_when_it_runs():
  double = jax.jit(lambda x: 2 * x)
  x, y = jnp.ones(3), jnp.ones(5)
  before = compiler.work()
  double(x)
  made = compiler.work() - before
  assert made.programs == 1 and made.seconds > 0
  double(x)
  assert compiler.work() - before == made
  double(y)  # Another shape is another program.
  assert (compiler.work() - before).programs == 2


def test_a_second_of_nested_work_counts_once():
  meter = compiler._Meter()
  for event, start, end in (
    (compiler.TRACED, 1.0, 2.0),  # of a function that the next one calls
    (compiler.COMPILED, 2.0, 2.5),  # of a constant
    (compiler.TRACED, 0.5, 4.0),
    (compiler.LOWERED, 4.0, 5.0),
    (compiler.COMPILED, 5.0, 8.0),
    ('/jax/another/duration', 8.0, 9.0),
  ):
    meter.on_span(event, start, end)
  assert meter.work == compiler.Work(7.5, programs=2, cached=0)


CACHED = """
import jax, jax.numpy as jnp
from gft_jax.run import compiler
x = jnp.ones(3)
for _ in range(2):
  before = compiler.work()
  jax.jit(lambda x: jnp.sin(x) + 1)(x)
  print(*(compiler.work() - before)[1:])
  jax.clear_caches()
"""


def test_programs_of_the_persistent_cache_are_told_apart(tmp_path):
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }
  done = subprocess.run(
    [sys.executable, '-c', CACHED],
    cwd=ROOT,
    env=environment,
    check=True,
    capture_output=True,
    text=True,
  )
  assert done.stdout.split('\n')[:2] == ['1 0', '1 1']
