"""Files that are the old one or the new one, whenever the power goes."""

import os
import pathlib


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file that is the old or the new one, also across a power cut."""
  temporary = path.with_suffix('.tmp')
  with temporary.open('w') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.rename(path)
