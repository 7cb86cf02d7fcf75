"""A jax.profiler trace of the steps that a user names.

It opens in TensorBoard (xprof) and in Perfetto. The host's lines have the steps
and the phases of `clock.Clock`, the device's have operations under the named
scopes of the programs.
"""

import contextlib
import pathlib
from collections.abc import Generator

import jax

from gft_jax.config import profiled_steps


class Profiler:
  """Writes `folder`/STAGE; process 0 alone, of its own devices."""

  def __init__(self, folder: pathlib.Path, profile: str):
    """Takes `log.profile`; see config.profiled_steps."""
    self._folder = folder
    self._profile = profile if jax.process_index() == 0 else ''
    self._stage: str | None = None  # whose trace is open

  def traces(self, stage: str, step: int) -> bool:
    return step in profiled_steps(self._profile, stage)

  @contextlib.contextmanager
  def step(self, stage: str, step: int) -> Generator[None, None, None]:
    """Around all of one step, until the devices have done it."""
    if self._stage != stage:
      self.close()  # That stage ended early.
    if not self.traces(stage, step):
      yield
      return
    if self._stage is None:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # Every Python call would hide the rest.
      jax.profiler.start_trace(self._folder / stage, profiler_options=options)
      self._stage = stage
    with jax.profiler.StepTraceAnnotation('step', step_num=step):
      yield
    if not self.traces(stage, step + 1):
      self.close()

  def close(self) -> None:
    """Writes the trace that is open."""
    if self._stage is not None:
      self._stage = None
      jax.profiler.stop_trace()
