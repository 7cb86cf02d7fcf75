"""Memory that compilations have freed leaves the process."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from gft_jax import compiler
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
