"""What a program costs: operations of its jaxpr, traffic of its compiled text.

XLA's own cost analysis counts the body of a loop once. Here every loop counts
as often as it runs, where that is known before it does.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

BYTES = {
  'pred': 1,
  's8': 1,
  'u8': 1,
  'bf16': 2,
  'f16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
}
COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
# Names for what is there already; the start of what another line ends; and
# control flow, whose own lines are counted.
NO_TRAFFIC = re.compile(
  r'parameter|constant|tuple|get-tuple-element|bitcast|iota|partition-id|after-'
  r'all|while|conditional|call|[\w-]+-start|async-[\w-]+'
)


class Traffic(NamedTuple):
  """Of one device, in bytes.

  Attributes:
    memory: results written to the device's memory, each counted twice: it is
      written and read. What stays in a core's own memory counts nothing.
    collectives: kind -> (how many are run, bytes of their results; that of a
      reduce-scatter is the part that stays).
  """

  memory: float
  collectives: dict[str, tuple[int, float]]


def flops(jaxpr: Any) -> float:
  """Operations of the matrix products, over all devices.

  A loop without a length counts once, and of branches the costliest. Of a
  kernel every step of its grid counts, those too that its mask skips.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    name, parameters = equation.primitive.name, equation.params
    if name == 'dot_general':
      (contracted, _), _ = parameters['dimension_numbers']
      left = equation.invars[0].aval.shape
      size = math.prod(equation.outvars[0].aval.shape)
      total += 2 * size * math.prod(left[axis] for axis in contracted)
    inner = [flops(part) for part in _parts(parameters)]
    if name == 'cond':
      total += max(inner)
    elif name == 'scan':
      total += parameters['length'] * sum(inner)
    elif name == 'pallas_call':
      total += math.prod(parameters['grid_mapping'].grid) * sum(inner)
    elif name == 'shard_map':
      shape = parameters['mesh'].shape
      shards = math.prod(shape[x] for x in parameters['newly_manual_axes'])
      total += shards * sum(inner)
    else:
      total += sum(inner)
  return total


def _parts(parameters: dict[str, Any]) -> Iterator[Any]:
  """The jaxprs in the parameters of an equation."""
  for value in parameters.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      part = getattr(part, 'jaxpr', part)
      if hasattr(part, 'eqns'):
        yield part


def traffic(text: str, ladder: int = 0) -> Traffic:
  """Reads a compiled program: HLO, as `compiled.as_text()` gives it.

  Args:
    text: the program.
    ladder: of loops of so many turns each goes on where the one before it
      stops: the first takes them all. 0: there are none such.
  """
  bodies = _computations(text)
  climbed = False
  counts = collections.defaultdict[str, int](int)
  sizes = collections.defaultdict[str, float](float)
  memory = 0.0

  def visit(name: str, times: int) -> None:
    nonlocal memory, climbed
    for line in bodies[name]:
      found = re.match(r'\s+(?:ROOT )?%\S+ = (.*?) ([\w-]+)\(', line)
      if not found:
        continue
      result, kind = found.groups()
      for key in COLLECTIVES:
        if kind in (key, f'{key}-start'):
          counts[key] += times
          sizes[key] += times * _size(result, started=kind != key)
      if kind == 'while':
        limits = _limits(line, bodies)
        turns = ladder if ladder in limits else max(limits, default=1)
        if turns != ladder or not climbed:
          visit(_called(line, 'body'), times * turns)
        climbed |= turns == ladder
      elif kind in ('call', 'async-start'):
        visit(_called(line, 'to_apply') or _called(line, 'calls'), times)
      if not NO_TRAFFIC.fullmatch(kind):
        if kind == 'fusion':
          result = _written(bodies[_called(line, 'calls')]) or result
        memory += 2 * times * _size(result, core=False)

  visit('ENTRY', 1)
  return Traffic(memory, {k: (counts[k], sizes[k]) for k in sorted(counts)})


def _computations(text: str) -> dict[str, list[str]]:
  """Name -> lines; the program itself is ENTRY."""
  bodies, lines = {}, []
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%?([\w.-]+) .*\{$', line)
    if head:
      lines = bodies['ENTRY' if head[1] else head[2]] = []
    lines.append(line)
  return bodies


def _called(line: str, key: str) -> str:
  found = re.search(rf'\b{key}=%([\w.-]+)', line)
  return found[1] if found else ''


def _limits(line: str, bodies: dict[str, list[str]]) -> list[int]:
  """How often a while loop may run: its condition has `i < a constant`."""
  condition = '\n'.join(bodies[_called(line, 'condition')])
  if 'direction=LT' not in condition:
    return []
  limits = re.findall(r'[su]32\[\]\S* constant\((\d+)\)', condition)
  return list(map(int, limits))


def _written(fused: list[str]) -> str:
  """The shape that a fusion writes where it updates a part of an array."""
  root = next(line for line in fused if 'ROOT ' in line)
  found = re.search(r'dynamic-update-slice\(%\S+, (%[\w.-]+)', root)
  if not found:
    return ''
  update = next(line for line in fused if f' {found[1]} = ' in line)
  return update.split(' = ')[1].split('(')[0]


def _size(shapes: str, *, started: bool = False, core: bool = True) -> float:
  """Bytes of a shape, or of all in a tuple.

  What is `started` gives operands, as many results, and scalars; the results
  count.
  With core=False those in a core's own memory, S(1), count nothing.
  """
  sizes = [
    BYTES.get(dtype, 4) * math.prod(map(int, filter(None, dims.split(','))))
    for dtype, dims, layout in re.findall(
      r'(\w+)\[([\d,]*)\](\{[^}]*\})?', shapes
    )
    if (core or 'S(1)' not in layout) and (dims or not started)
  ]
  return sum(sizes[len(sizes) // 2 :] if started else sizes)
