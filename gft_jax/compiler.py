"""What the compiler leaves in the memory of the process."""

import ctypes
import functools
import platform

import jax

# What JAX calls the event; jax._src.dispatch.BACKEND_COMPILE_EVENT, 0.10.2.
COMPILED = '/jax/core/compile/backend_compile_duration'
# Shorter compilations leave little behind.
LONG_S = 0.5


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

  def listen(event: str, seconds: float, **_) -> None:
    if event == COMPILED and seconds > LONG_S:
      trim(0)

  jax.monitoring.register_event_duration_secs_listener(listen)
