"""Runs engines side by side: fresh processes that take turns.

A benchmark starts itself once per engine. Each process builds, compiles and
warms up alone; then they run one measured turn after the other, so that what
else the machine does falls on all of them alike. A ratio is the median over
turns of one turn's ratio. Peak memory is ru_maxrss of the whole process at its
end, compilation included.

The machine's limits take their turns too: the rate of a large matrix product and
of a copy. A roofline time is what the least work would take at these rates; its
share of the measured time says how far an engine is from the limit.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]

Run = Callable[[], int]
# Phases of (operations, bytes) that no engine can do without; a phase takes the
# longer of the two.
Work = list[tuple[float, float]]
MATRIX, COPIED = 4096, 2**28

# Packages of engines that this project does without.
PACKAGES = {'tunix': 'tunix', 'torch': 'torch', 'transformers': 'torch'}


def parser(description: str, **shapes: int) -> argparse.ArgumentParser:
  """--turns, --engines, --python and one flag per shape."""
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--engine', help=argparse.SUPPRESS)
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument(
    '--engines', nargs='+', help='by default ours and those that are installed'
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
  options: argparse.Namespace,
  engines: dict[str, Callable[[Any], Run]],
  work: Callable[[Any], tuple[int, Work]],
) -> None:
  """Serves one engine, or measures all and prints one JSON line and a row.

  `work(options)` is the units of one turn and its least work, if known.
  """
  engines = engines | {'product': _product, 'copy': _copy}
  if options.engine:
    _serve(engines[options.engine], options)
    return
  pythons = dict(pair.split('=', 1) for pair in options.python)
  names = options.engines or [
    name for name in engines if name not in LIMITS and _runs(name, pythons)
  ]
  results = _alternate([*names, *LIMITS], pythons, options.turns)
  product, copy = (
    statistics.median(results.pop(limit)['rates']) for limit in LIMITS
  )
  units, phases = work(options)
  seconds = sum(max(f / product, b / copy) for f, b in phases)
  for result in results.values():
    result['median'] = statistics.median(result['rates'])
    if phases:
      result['roofline'] = seconds / (units / result['median'])
  first = names[0]
  line = {
    'benchmark': os.path.basename(sys.argv[0]).removesuffix('.py'),
    'arguments': sys.argv[1:],
    'gflops': product / 1e9,
    'gb_per_second': copy / 1e9,
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
    share = f'{r["roofline"]:.2f} of roofline' if phases else ''
    print(
      f'| {name} | {r["median"]:,.0f} a second | {r["peak_mb"]:,.0f} MB |'
      f' {share} | {r["first_seconds"]:.1f} s first call |'
    )


def _runs(engine: str, pythons: dict[str, str]) -> bool:
  package = PACKAGES.get(engine)
  if engine in pythons or not package or importlib.util.find_spec(package):
    return True
  print(f'{engine} is left out: no package {package}', file=sys.stderr)
  return False


def _product(options) -> Run:
  import jax
  import jax.numpy as jnp

  a = jnp.ones((MATRIX, MATRIX), getattr(options, 'dtype', 'float32'))
  multiply = jax.jit(jnp.matmul)

  def run():
    jax.block_until_ready(multiply(a, a))
    return 2 * MATRIX**3

  return run


def _copy(options) -> Run:
  import jax
  import jax.numpy as jnp

  x = jnp.zeros(COPIED // 4)
  add = jax.jit(lambda x: x + 1, donate_argnums=0)

  def run():
    nonlocal x
    for _ in range(10):
      x = add(x)
    jax.block_until_ready(x)
    return 10 * 2 * COPIED  # read and written

  return run


LIMITS = ('product', 'copy')


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
  _say(peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _say(**values: float) -> None:
  print('@' + json.dumps(values), flush=True)


def _alternate(
  names: list[str], pythons: dict[str, str], turns: int
) -> dict[str, dict[str, Any]]:
  children: dict[str, _Child] = {}
  results: dict[str, dict[str, Any]] = {}
  for name in names:
    child = _start(name, pythons.get(name, sys.executable))
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
    child.process.wait()
  return results


class _Child(NamedTuple):
  """The process of an engine, which reads orders and answers with numbers."""

  engine: str
  process: subprocess.Popen[str]
  orders: IO[str]
  answers: IO[str]


def _start(engine: str, python: str) -> _Child:
  process = subprocess.Popen(
    [python, *sys.argv, '--engine', engine],
    # The shapes are gft_jax's, also where it is not installed.
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdin and process.stdout  # For both are pipes.
  return _Child(engine, process, process.stdin, process.stdout)


def _ask(child: _Child, order: str) -> dict[str, float]:
  child.orders.write(order + '\n')
  child.orders.flush()
  return _hear(child)


def _hear(child: _Child) -> dict[str, float]:
  for line in child.answers:
    if line.startswith('@'):
      return json.loads(line[1:])
  raise SystemExit(f'{child.engine} ended without an answer')
