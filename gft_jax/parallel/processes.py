"""The processes of a run: joining them, asking all of them, losing one."""

import contextlib
import json
import os
import re
from collections.abc import Generator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from gft_jax.config import ConfigError, require
from gft_jax.types import Tree

Said = TypeVar('Said')
# Seconds without a sign of life after which a process counts as gone.
HEARTBEAT = 60

# Words of gloo (CPU), NCCL (GPU), the coordination service and Orbax.
_LOST = r'(?i)gloo|nccl|connection (closed|reset)|coordination|barrier'


def initialize_processes() -> None:
  """Joins the other processes of the run, if there are any.

  Call it before anything touches a device; every process runs the same
  program. Three variables describe the run: JAX_COORDINATOR_ADDRESS
  (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID. Without them
  this process is alone. On a TPU pod or under Slurm, GFT_JAX_PROCESSES=auto
  lets JAX find them.

  A process that is gone is noticed when the next collective fails, or, where
  nothing says so, for instance because the machine is gone, after HEARTBEAT
  seconds.

  Raises:
    ConfigError: some of the three are set, but not all, or not as numbers; or
      JAX finds no processes.
  """
  found = os.environ.get('GFT_JAX_PROCESSES')
  if found:
    require(found == 'auto', f'GFT_JAX_PROCESSES={found!r} is not auto')
    try:
      jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    except ValueError as error:
      raise ConfigError(
        f'GFT_JAX_PROCESSES=auto: JAX finds no other process here ({error})'
      ) from error
    _compile_anew()
    return
  names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
  missing = [name for name in names if name not in os.environ]
  if len(missing) == len(names):
    return
  require(
    not missing, f'a run of several processes needs {", ".join(missing)} too'
  )
  address, *numbers = (os.environ[name] for name in names)
  require(
    all(number.isdecimal() for number in numbers),
    f'JAX_NUM_PROCESSES={numbers[0]!r} and JAX_PROCESS_ID={numbers[1]!r} must be'
    ' numbers',
  )
  count, index = map(int, numbers)
  jax.distributed.initialize(
    address, count, index, heartbeat_timeout_seconds=HEARTBEAT
  )
  _compile_anew()


def _compile_anew() -> None:
  """Programs for several processes on CPUs do not come from the cache.

  With jaxlib 0.10 those that did hung, or their sums were wrong: a gradient
  norm of 66 for 1.6.
  """
  if jax.default_backend() == 'cpu':
    jax.config.update('jax_enable_compilation_cache', False)


class LostProcessError(ConnectionError):
  """Another process of the run is gone; the message is one line."""


@contextlib.contextmanager
def connected() -> Generator[None, None, None]:
  """Raises LostProcessError where a collective says that a process is gone."""
  try:
    yield
  except (jax.errors.JaxRuntimeError, TimeoutError) as error:
    reason = ' '.join(str(error).split())
    if jax.process_count() == 1 or not re.search(_LOST, reason):
      raise
    raise LostProcessError(
      f'process {jax.process_index()} cannot reach another process of the run;'
      ' the last checkpoint stands, start all of them again'
      f' ({reason[:160]})'
    ) from error


def largest(*numbers: int) -> tuple[int, ...]:
  """The largest of each number over all processes; every process must ask."""
  found = multihost_utils.process_allgather(np.array(numbers))
  return tuple(found.reshape(-1, len(numbers)).max(axis=0).tolist())


def any_process(*flags: bool) -> tuple[bool, ...]:
  """Which flags any process of the run raises; every process must ask."""
  raised = multihost_utils.process_allgather(np.array(flags))
  return tuple(raised.reshape(-1, len(flags)).any(axis=0).tolist())


def barrier() -> None:
  """Returns when every process has come here."""
  any_process(False)


def gather(tree: Tree) -> Tree:
  """Host arrays [B / processes, ...] -> [B, ...], the same in every process.

  The rows stand in the order of the processes, as in `to_global`. Every process
  must ask. Numbers of 64 bits would be rounded to 32.
  """
  if jax.process_count() == 1:
    return tree
  return multihost_utils.process_allgather(tree, tiled=True)


def own_rows(count: int) -> slice:
  """Which of `count` rows are this process's; the inverse of `gather`."""
  share = count // jax.process_count()
  return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def exchange(value: Said) -> list[Said]:
  """What each process has to say, in their order; every process must ask.

  Args:
    value: JSON types; a float arrives bit for bit.
  """
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  # A power of two: each size is another program to compile.
  width = 1 << (max(largest(len(text))) - 1).bit_length()
  texts = gather(np.pad(text, (0, width - len(text)))[None])
  return [json.loads(row.tobytes().rstrip(b'\0')) for row in texts]
