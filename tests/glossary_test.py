"""METRICS.md names what the code writes, and nothing else."""

import ast
import json
import pathlib
import re

import numpy as np
import pytest
from views import resolved, view

from gft_jax.evaluation import generations
from gft_jax.run.clock import STEP, Past
from gft_jax.training.objectives import OBJECTIVES, with_options

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / 'gft_jax' / 'METRICS.md'
HEAD = '| name | meaning | unit | worry when |'
# What the words in capitals of the page stand for.
STANDS_FOR = {
  'SPLIT': r'[^/]+',
  'NUMBER': r'((avg|pass|maj)@\d+|mean_reward)',
  'ORIGIN': '(expert|teacher|self)',
  'TERM': '[a-z]+',
  'PART': '.+',
  'CAUSE': '[a-z]+',
  'N': r'\d+',
  'K': r'\d+',
}
# Names that a source builds are of the runs below, or of these.
BUILT = {f'time/{name}' for name in (*STEP, *Past._fields)}


def rows():
  """The cells of every row of the page's tables."""
  found = []
  for block in PAGE.read_text().split(HEAD)[1:]:
    lines = block.strip('\n').splitlines()[1:]
    for line in lines:
      if not line.startswith('|'):
        break
      cells = re.split(r'(?<!\\)\|', line)[1:-1]
      found.append([cell.strip() for cell in cells])
  return found


def named():
  """Name of the page -> the names that it stands for, as a pattern."""
  words = rf'(?<![A-Z])({"|".join(STANDS_FOR)})(?![A-Z])'
  return {
    name: re.sub(words, lambda word: STANDS_FOR[word[0]], name)
    for cells in rows()
    for name in re.findall('`([^`]+)`', cells[0])
  }


def of_an_objective(name):
  """Its own metrics and the names of its terms, with those of all options."""
  row, options = OBJECTIVES[name], {'kl': 'k3', 'kl_weight': 0.1}
  seen = view(reference_logp=np.zeros_like(view().logp))
  settings = resolved(name, entropy_bonus=0.1, **options)
  found = {f'train/{n}' for n in row.observe(seen, settings)}
  terms = with_options(row, seen, settings)
  return found | {f'train/loss_{term.name}' for term in terms}


def of_an_evaluation():
  votes = np.zeros((2, 4), int)
  counted = generations.accuracy(np.zeros((2, 4)), (1, 4), votes)
  return {f'eval/test/{name}' for name in counted}


def of_a_comparison(folder):
  for name in ('before', 'after'):
    entry = dict.fromkeys(generations.KEPT, '') | {'index': 0, 'reward': 1.0}
    (folder / name).write_text(json.dumps(entry))
  return set(generations.paired(folder / 'before', folder / 'after'))


def keys_of(path, function):
  """Keys of the dicts that a function writes down."""
  (body,) = (
    node
    for node in ast.walk(ast.parse((ROOT / 'gft_jax' / path).read_text()))
    if isinstance(node, ast.FunctionDef) and node.name == function
  )
  dicts = [node for node in ast.walk(body) if isinstance(node, ast.Dict)]
  return {key.value for found in dicts for key in found.keys if is_text(key)}


def of_a_reward_model():
  names = keys_of('models/reward_model.py', 'compare')
  return {f'{group}/{name}' for group in ('train', 'eval') for name in names}


def of_a_benchmark():
  names = keys_of('evaluation/benchmark.py', 'ask_benchmark')
  return {f'eval/amc/{name}' for name in names}


def of_a_run():
  """The short run of numbers_test.py, which has these names to this day."""
  records = json.loads((ROOT / 'tests/golden/run_bf59033.json').read_text())
  names = {name for record in records for name in record}
  return {name for name in names if '/' in name}


def of_the_sources():
  """Names that stand in the sources as they are written."""
  found = set(BUILT)
  for path in (ROOT / 'gft_jax').rglob('*.py'):
    if 'report' in path.parts:  # It reads.
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      if (
        isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'phase'
      ):
        found |= {f'time/{x.value}' for x in node.args if is_text(x)}
      if is_text(node) or isinstance(node, ast.JoinedStr):
        found.add(text_of(node))
  shape = r'(train|eval|time|memory|cost)/([a-z_]+/)?[a-zA-Z_]+'
  return {name for name in found if re.fullmatch(shape, name)}


def is_text(node):
  return isinstance(node, ast.Constant) and isinstance(node.value, str)


def text_of(node):
  """A text of a source; what it puts in is 'x'."""
  if is_text(node):
    return node.value
  return ''.join(part.value if is_text(part) else 'x' for part in node.values)


def is_generic(name):
  """Whatever a group has: 'train/x', 'eval/x/x'."""
  return bool(re.fullmatch(r'\w+(/x)+', name))


def missing(names):
  patterns = list(named().values())
  return sorted(
    name
    for name in names
    if not any(re.fullmatch(pattern, name) for pattern in patterns)
  )


@pytest.fixture
def written(tmp_path):
  """Every name that is written, from where it comes."""
  return {
    **{name: of_an_objective(name) for name in OBJECTIVES},
    'evaluation': of_an_evaluation(),
    'comparison': of_a_comparison(tmp_path),
    'reward model': of_a_reward_model(),
    'benchmark': of_a_benchmark(),
    'run': of_a_run(),
    'sources': {n for n in of_the_sources() if not is_generic(n)},
  }


def test_what_is_written_is_on_the_page(written):
  absent = {source: missing(names) for source, names in written.items()}
  assert {k: v for k, v in absent.items() if v} == {}


def test_what_is_on_the_page_is_written(written):
  names = set().union(*written.values())
  unknown = [
    name
    for name, pattern in named().items()
    if not any(re.fullmatch(pattern, found) for found in names)
  ]
  assert unknown == []


def test_every_row_says_what_and_how_and_when_to_worry():
  found = rows()
  assert len(found) > 50
  for cells in found:
    assert len(cells) == 4 and all(cells), cells
  names = [
    name for cells in found for name in re.findall('`([^`]+)`', cells[0])
  ]
  twice = {name for name in names if names.count(name) > 1}
  assert twice == {'train/loss'}  # Also of a reward model.


def test_a_name_that_nobody_explains_is_found():
  assert missing({'train/loss_policy', 'eval/test/avg@4_low'}) == []
  unknown = {'train/novel', 'eval/test/avg@4_middle', 'time/nap', 'eval/test/x'}
  assert missing(unknown) == sorted(unknown)
