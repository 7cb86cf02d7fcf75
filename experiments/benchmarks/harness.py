"""Runs engines side by side: fresh processes that take turns.

A benchmark starts itself once per engine. Each process builds, compiles and
warms up alone; then they run one measured turn after the other, so that what
else the machine does falls on all of them alike. A ratio is the median over
turns of one turn's ratio. Peak memory is ru_maxrss of the whole process at its
end, compilation included.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], int]


def parser(description: str, **shapes: int) -> argparse.ArgumentParser:
  """--turns, --engines, --python and one flag per shape."""
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--engine', help=argparse.SUPPRESS)
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument(
    '--engines', nargs='+', help='by default ours and what can be imported'
  )
  parser.add_argument(
    '--python',
    action='append',
    default=[],
    metavar='ENGINE=PATH',
    help='interpreter of an engine whose packages do not go with ours',
  )
  for name, value in shapes.items():
    parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=value)
  return parser


def main(
  options: argparse.Namespace, engines: dict[str, Callable[[Any], Run]]
) -> None:
  """Serves one engine, or measures all and prints one JSON line and a row."""
  if options.engine:
    _serve(engines[options.engine], options)
    return
  pythons = dict(pair.split('=', 1) for pair in options.python)
  names = options.engines or list(engines)
  results = _alternate(names, pythons, options.turns)
  first = names[0]
  line = {
    'benchmark': os.path.basename(sys.argv[0]).removesuffix('.py'),
    'arguments': sys.argv[1:],
    'engines': results,
  }
  for name in names[1:]:
    turns = zip(results[first]['rates'], results[name]['rates'])
    line[f'{first}/{name}'] = {
      'rate': statistics.median(a / b for a, b in turns),
      'peak memory': results[first]['peak_mb'] / results[name]['peak_mb'],
    }
  print(json.dumps(line))
  for name in names:
    r = results[name]
    print(
      f'| {name} | {statistics.median(r["rates"]):,.0f} a second |'
      f' {r["peak_mb"]:,.0f} MB | {r["first_seconds"]:.1f} s first call |'
    )


def _serve(make: Callable[[Any], Run], options: argparse.Namespace) -> None:
  start = time.perf_counter()
  run = make(options)
  run()
  _say(first_seconds=time.perf_counter() - start)
  run()
  for order in sys.stdin:
    if order.strip() == 'end':
      break
    start = time.perf_counter()
    units = run()
    _say(rate=units / (time.perf_counter() - start))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  _say(peak_mb=peak)


def _say(**values: float) -> None:
  print('@' + json.dumps(values), flush=True)


def _alternate(
  names: list[str], pythons: dict[str, str], turns: int
) -> dict[str, dict[str, Any]]:
  children, results = {}, {}
  for name in names:
    command = [pythons.get(name, sys.executable), *sys.argv, '--engine', name]
    child = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    children[name] = child
    results[name] = _hear(child) | {'rates': []}
  # The first turn after a process has waited is slower: it does not count.
  for turn in range(turns + 1):
    for name, child in children.items():
      rate = _ask(child, 'go')['rate']
      if turn:
        results[name]['rates'].append(rate)
  for name, child in children.items():
    results[name] |= _ask(child, 'end')
    child.wait()
  return results


def _ask(child: subprocess.Popen, order: str) -> dict[str, float]:
  child.stdin.write(order + '\n')
  child.stdin.flush()
  return _hear(child)


def _hear(child: subprocess.Popen) -> dict[str, float]:
  for line in child.stdout:
    if line.startswith('@'):
      return json.loads(line[1:])
  raise SystemExit(f'{child.args[-1]} ended without an answer')
