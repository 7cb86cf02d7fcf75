"""The rooms of the house import downward only."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

HOUSE = pathlib.Path(__file__).parents[1] / 'gft_jax'

# From the ground up. A room imports rooms on the floors below it and itself,
# never a room beside it. So no two rooms import each other.
FLOORS = (
  ('types', 'thoughts'),
  ('ops', 'config'),
  ('batch', 'answers', 'parallel'),
  ('models', 'rewards'),
  ('huggingface', 'rollout', 'run', 'training'),
  ('data',),
  ('policy', 'programs'),
  ('engine',),
  ('collect', 'evaluation', 'report'),
  ('plan', 'generate'),
  ('evaluate', 'stage', 'teacher'),
  ('stage_evaluation',),
  ('loop', 'preferences'),
  ('recipes',),
  ('arms', 'diagnosis'),
)
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}

OPS_MAY_IMPORT = {
  'jax',
  'jaxtyping',
  'chex',
  'gft_jax',
  'collections',
  'functools',
  'math',
  'typing',
}


def files():
  return sorted(HOUSE.rglob('*.py'))


def room_of(path):
  """models/transformer.py -> models; engine.py -> engine; __init__ -> ''."""
  first = path.relative_to(HOUSE).parts[0]
  return first.removesuffix('.py').replace('__init__', '')


def imported_modules(source):
  """Dotted names that a file imports, wherever the import stands."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports name the whole path'
      # `from gft_jax import ops` and `from gft_jax.ops import masking`.
      for alias in node.names:
        yield f'{node.module}.{alias.name}'


def imported_rooms(source):
  for name in imported_modules(source):
    parts = name.split('.')
    if parts[0] == 'gft_jax':
      yield parts[1]


def breaches(room, source):
  """Rooms that a file of `room` must not import, but does."""
  return [
    other
    for other in imported_rooms(source)
    if other != room and LEVEL[other] >= LEVEL[room]
  ]


@pytest.mark.parametrize('path', files(), ids=lambda p: p.stem)
def test_imports_point_downward(path):
  source, room = path.read_text(), room_of(path)
  assert not any(
    name.split('.')[0] == 'experiments' for name in imported_modules(source)
  )
  if room == '':  # The package itself imports nothing of the house.
    assert not list(imported_rooms(source))
    return
  assert room in LEVEL, f'{path.name}: give the new room a floor'
  assert not breaches(room, source)


def test_no_two_rooms_import_each_other():
  rooms = {room: set() for room in LEVEL}
  for path in files():
    if room_of(path):
      rooms[room_of(path)] |= {*imported_rooms(path.read_text())}
  both = [(a, b) for a in rooms for b in rooms[a] if a < b and a in rooms[b]]
  assert not both


@pytest.mark.parametrize('path', files(), ids=lambda p: p.stem)
def test_a_module_and_its_functions_fit_a_reader(path):
  """500 lines a module, 80 a function, 8 parameters; the settings are a list."""
  source = path.read_text()
  assert len(source.splitlines()) <= 500 or path.stem == 'settings'
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef):
      assert node.end_lineno - node.lineno < 80, node.name
      taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
      taken = [a for a in taken if a.arg not in ('self', 'cls')]
      assert len(taken) <= 8, node.name


def test_few_lines_say_any():
  """And few errors of the type checker are ignored, each with its reason."""
  lines = [line for path in files() for line in path.read_text().splitlines()]
  assert sum(bool(re.search(r'\bAny\b', line)) for line in lines) <= 40
  scripts = (HOUSE.parent / 'experiments').rglob('*.py')
  lines += [line for path in scripts for line in path.read_text().splitlines()]
  assert sum('pyrefly: ignore' in line for line in lines) <= 10


def test_every_room_is_seen():
  assert {room_of(path) for path in files()} == {'', *LEVEL}


@pytest.mark.parametrize(
  'path', sorted((HOUSE / 'ops').glob('*.py')), ids=lambda p: p.stem
)
def test_ops_import_jax_chex_and_ops(path):
  source = path.read_text()
  roots = {name.split('.')[0] for name in imported_modules(source)}
  assert roots <= OPS_MAY_IMPORT
  assert set(imported_rooms(source)) <= {'ops', 'types'}


@pytest.mark.parametrize(
  'room, source, found',
  [
    ('ops', 'from gft_jax.config import Config', ['config']),
    ('ops', 'def f():\n  import gft_jax.batch', ['batch']),
    ('models', 'from gft_jax.rewards import grader', ['rewards']),
    ('rollout', 'from gft_jax import run, batch', ['run']),
    ('config', 'from gft_jax import loop as t', ['loop']),
    ('models', 'from gft_jax.models import attention', []),
    ('loop', 'from gft_jax import report, ops', []),
  ],
)
def test_the_test_can_fail(room, source, found):
  assert breaches(room, source) == found


def test_importing_the_package_costs_nothing():
  """No jax, and nothing else that takes seconds."""
  script = (
    'import sys; import gft_jax;'
    'print(*sorted({"jax", "numpy", "flax", "orbax", "grain"}'
    ' & set(sys.modules)))'
  )
  done = subprocess.run(
    [sys.executable, '-c', script],
    cwd=HOUSE.parent,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == ''
