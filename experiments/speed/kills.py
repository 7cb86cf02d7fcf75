"""What kill -9 at a random moment costs, against the checkpoint interval.

  python experiments/speed/kills.py --every 10 40 80 --kills 9

For each interval a run of experiments/train.py on the recipe of end_to_end.py is
killed again and again, at random moments spread over the interval, and started
with the same command. Lost are the seconds from the last record before a kill
to the next one after it, less those of a step. Expected are half of the
interval, with its save, and a start: imports, programs from their cache,
restoring. Prints one JSON line and rows for the README: interval, start,
expected, median and range.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = 'experiments/speed/end_to_end.py'


class Run:
  """A run that is killed and started again, watched through its metrics."""

  def __init__(self, folder: pathlib.Path, every: int):
    self._workdir = folder / str(every)
    self._every = every
    self._programs = str(folder / 'programs')

  def start(self) -> None:
    self._process = subprocess.Popen(
      [
        *(sys.executable, 'experiments/train.py', '--config', RECIPE),
        *('--workdir', str(self._workdir)),
        *('--set', f'checkpoint.every={self._every}'),
        'stages.gft.steps=1000000',
      ],
      cwd=ROOT,
      env=os.environ | {'JAX_COMPILATION_CACHE_DIR': self._programs},
      stdout=subprocess.DEVNULL,
    )

  def step(self) -> int:
    """Of the last whole record; a resumed run cuts off those that are void."""
    with contextlib.suppress(FileNotFoundError):
      with (self._workdir / 'metrics.jsonl').open('rb') as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        *lines, _ = file.read().split(b'\n')
        if lines:
          return json.loads(lines[-1])['step']
    return 0

  def resumed(self) -> float:
    """Waits for the first record after a start; returns when it was seen."""
    manifests = self._workdir.glob('checkpoints/gft/*/manifest.json')
    saved = max(int(path.parent.name) for path in manifests)
    # Those of the killed run are cut off first.
    self._wait(lambda: self.step() <= saved)
    return self.reach(saved + 1)

  def reach(self, step: int) -> float:
    """Waits for a record; returns when it was seen."""
    return self._wait(lambda: self.step() >= step)

  def _wait(self, ready: Callable[[], bool]) -> float:
    while not ready():
      if self._process.poll() is not None:
        raise SystemExit(f'experiments/train.py: {self._process.returncode}')
      time.sleep(0.002)
    return time.perf_counter()

  def kill_after(self, seconds: float) -> tuple[int, float]:
    """Returns the step of the last record, and when that was seen."""
    step, end = self.step(), time.perf_counter() + seconds
    seen = time.perf_counter()
    while time.perf_counter() < end:
      if self.step() > step:
        step, seen = self.step(), time.perf_counter()
      time.sleep(0.002)
    self._process.kill()
    self._process.wait()
    return step, seen


def measured(run: Run, every: int, kills: int, draw: random.Random) -> dict:
  run.start()
  begin = run.reach(every + 1)  # What came before compiles.
  step = (run.reach(2 * every - 1) - begin) / (every - 2)
  interval = run.reach(2 * every + 1) - begin
  # One moment in each of equal parts of the interval: fewer kills will do.
  moments = [(k + draw.random()) / kills for k in range(kills)]
  draw.shuffle(moments)
  starts, lost = [], []
  for moment in moments:
    wait = (moment - run.step() / every) % 1
    last, seen = run.kill_after(wait * interval)
    begin = time.perf_counter()
    run.start()
    starts.append(run.resumed() - begin - step)
    lost.append(run.reach(last + 1) - seen - step)
  run.kill_after(0)
  start = statistics.median(starts)
  return {
    'step_seconds': step,
    'interval_seconds': interval,
    'start_seconds': start,
    'expected': interval / 2 + start,
    'measured': statistics.median(lost),
    'lost': lost,
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--every', type=int, nargs='+', default=[10, 40, 80])
  parser.add_argument('--kills', type=int, default=9)
  options = parser.parse_args()
  draw, points = random.Random(0), {}
  with tempfile.TemporaryDirectory() as folder:
    for every in options.every:
      run = Run(pathlib.Path(folder), every)
      points[every] = measured(run, every, options.kills, draw)
  line = {
    'benchmark': 'kills',
    'arguments': sys.argv[1:],
    'points': points,
  }
  print(json.dumps(line))
  for every, point in points.items():
    print(
      f'| {every} steps, {point["interval_seconds"]:.1f} s |'
      f' {point["start_seconds"]:.1f} s | {point["expected"]:.1f} s |'
      f' {point["measured"]:.1f} s ({min(point["lost"]):.1f} to'
      f' {max(point["lost"]):.1f}) |'
    )


if __name__ == '__main__':
  main()
