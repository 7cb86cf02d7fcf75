"""Which answers hit the time limit, for a second run to repeat."""

import contextlib
import functools
import json
import os
import pathlib


class Journal:
  """Answers that hit the time limit, so that a resumed run repeats them.

  Time is the one input that a second run need not repeat. Each line of the
  file names a batch of answers and the positions that timed out in it.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path

  @functools.cached_property
  def _timed_out(self) -> dict[str, tuple[int, ...]]:
    """Read when it is asked for: another process may still write until then."""
    found = {}
    if self._path.exists():
      for line in self._path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # A line cut by a kill.
          entry = json.loads(line)
          found[entry['batch']] = tuple(entry['positions'])
    return found

  def replay(self, batch: str) -> tuple[int, ...]:
    return self._timed_out.get(batch, ())

  def record(self, batch: str, positions: tuple[int, ...]) -> None:
    if positions and positions != self.replay(batch):
      self._timed_out[batch] = positions
      with self._path.open('a') as file:
        line = json.dumps({'batch': batch, 'positions': positions})
        file.write(f'\n{line}')
        file.flush()
        os.fsync(file.fileno())
