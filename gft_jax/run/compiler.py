"""What the compiler takes: seconds, programs, and the memory of the process."""

import ctypes
import functools
import platform
from typing import NamedTuple

import jax

# What JAX calls the events; jax._src.dispatch and jax._src.compiler, 0.10.2.
TRACED = '/jax/core/compile/jaxpr_trace_duration'
LOWERED = '/jax/core/compile/jaxpr_to_mlir_module_duration'
COMPILED = '/jax/core/compile/backend_compile_duration'
CACHED = '/jax/compilation_cache/cache_hits'
# Shorter compilations leave little behind.
LONG_S = 0.5


class Work(NamedTuple):
  """What the compiler has done.

  Attributes:
    seconds: of tracing, lowering and compiling, or of reading the cache.
    programs: how many were made; one that runs again is not made again.
    cached: how many of them the persistent cache had.
  """

  seconds: float
  programs: int
  cached: int

  def __sub__(self, other: 'Work') -> 'Work':
    return Work(
      self.seconds - other.seconds,
      self.programs - other.programs,
      self.cached - other.cached,
    )


class _Meter:
  """Adds up what JAX reports, each second once."""

  def __init__(self):
    self.work = Work(0.0, 0, 0)
    self._spans: list[tuple[float, float]] = []  # start, end; disjoint

  def on_span(
    self, event: str, start_time: float, end_time: float, **_: str | int
  ) -> None:
    """JAX calls it as the event ends."""
    if event not in (TRACED, LOWERED, COMPILED):
      return
    start, end = start_time, end_time
    seconds = end - start
    # A trace contains those of the functions that it calls.
    while self._spans and self._spans[-1][0] >= start:
      inner = self._spans.pop()
      seconds -= inner[1] - inner[0]
    self._spans.append((start, end))
    total, programs, cached = self.work
    self.work = Work(total + seconds, programs + (event == COMPILED), cached)

  def on_event(self, event: str, **_: str | int) -> None:
    if event == CACHED:
      self.work = self.work._replace(cached=self.work.cached + 1)


@functools.cache
def _meter() -> _Meter:
  meter = _Meter()
  jax.monitoring.register_event_time_span_listener(meter.on_span)
  jax.monitoring.register_event_listener(meter.on_event)
  return meter


def work() -> Work:
  """All that this process has compiled since this was first called."""
  return _meter().work


@functools.cache
def return_freed_memory() -> None:
  """From now on, memory that a compilation has freed goes back to the system.

  glibc keeps it otherwise: 400 MB after a training step was compiled for a CPU,
  which then stand beside what the step itself needs. Does nothing under other
  C libraries, and nothing more when it is called again.
  """
  if platform.libc_ver()[0] != 'glibc':
    return
  trim = ctypes.CDLL(None).malloc_trim

  def listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == COMPILED and duration_secs > LONG_S:
      trim(0)

  jax.monitoring.register_event_duration_secs_listener(listen)
