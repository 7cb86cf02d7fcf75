"""From the command to the first optimizer step, and one iteration by phase.

  python experiments/speed/end_to_end.py --turns 3

A turn is two fresh processes of experiments/train.py on the recipe below: the
first finds no compiled programs, the second finds those of the first. Prints
one JSON line and rows for the README.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def get_config():
  """A small GFT run: 16 prompts x (1 expert + 3 teachers + 4 own answers)."""
  from gft_jax.config import Config, EvalConfig, LogConfig, Stage
  from gft_jax.recipes import embedded

  return Config(
    data=embedded.DATA,
    reward=embedded.REWARD,
    eval=EvalConfig(splits=(), kl_prompts=0),
    log=LogConfig(report=False, progress=False, tensorboard=False),
    stages=(Stage('gft', '', 'gft', 30),),
  )


def start(
  folder: pathlib.Path, workdir: str
) -> tuple[float, list[dict[str, float]]]:
  """Seconds to the first metrics, and the metrics of each step."""
  metrics = folder / workdir / 'metrics.jsonl'
  begin = time.perf_counter()
  process = subprocess.Popen(
    [
      *(sys.executable, 'experiments/train.py', '--config', __file__),
      *('--workdir', str(metrics.parent)),
    ],
    cwd=ROOT,
    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs')},
    stdout=subprocess.DEVNULL,
  )
  while not metrics.exists() or not metrics.read_text().endswith('\n'):
    if process.poll() is not None:
      raise SystemExit(f'experiments/train.py ended with {process.returncode}')
    time.sleep(0.02)
  seconds = time.perf_counter() - begin
  process.wait()
  records = map(json.loads, metrics.read_text().splitlines())
  return seconds, [r for r in records if 'train/loss' in r]


def main() -> None:
  from gft_jax.run.clock import STEP

  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--turns', type=int, default=3)
  turns = parser.parse_args().turns
  first: dict[str, list[float]] = {'cold': [], 'warm': []}
  records: list[dict[str, float]] = []
  for _ in range(turns):
    with tempfile.TemporaryDirectory() as folder:
      for name, seconds in first.items():
        until, records = start(pathlib.Path(folder), name)
        seconds.append(until)
  # The first step compiles.
  phases = {
    phase: statistics.median(r[f'time/{phase}'] for r in records[1:])
    for phase in STEP
    if f'time/{phase}' in records[0]
  }
  tokens = statistics.median(r['train/tokens'] for r in records[1:])
  line = {
    'benchmark': 'end_to_end',
    'seconds_to_first_step': first,
    'seconds_by_phase': phases,
    'tokens_per_second': tokens / sum(phases.values()),
    'peak_mb': records[-1]['memory/host_peak_mb'],
  }
  print(json.dumps(line))
  for name, seconds in first.items():
    print(f'| first step, {name} | {statistics.median(seconds):.1f} s |')
  for name, seconds in phases.items():
    print(f'| {name} | {1000 * seconds:.1f} ms |')


if __name__ == '__main__':
  main()
