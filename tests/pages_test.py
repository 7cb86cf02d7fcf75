"""The pages do what they say: code runs, commands and settings exist."""

import importlib
import itertools
import json
import math
import pathlib
import re
import runpy
import shlex
import sys

import jax
import pytest

from gft_jax import recipes
from gft_jax.config import (
  Config,
  MeshConfig,
  Stage,
  fields_with_meaning,
  override,
)
from gft_jax.ops import masking
from gft_jax.training import objectives

ROOT = pathlib.Path(__file__).parents[1]
OPERATIONS = ROOT / 'gft_jax' / 'ops' / 'README.md'
ADDING = ROOT / 'gft_jax' / 'README.md'
COMING = ROOT / 'experiments' / 'coming_from.md'
PAGES = (
  ROOT / 'README.md',
  ROOT / 'experiments' / 'README.md',
  ROOT / 'experiments' / 'pods' / 'README.md',
  ADDING,
  OPERATIONS,
  COMING,
  ROOT / 'gft_jax' / 'METRICS.md',
)

FENCED = r'```(\w*)\n(.*?)```'
# A block of Python and, where one follows at once, what it prints.
PRINTS = r'```python\n((?:(?!```).)*)```\n```text\n(.*?)```'
# A file that a page writes, and its contents.
WRITES = r'`([\w/]+\.py)`:\n\n```python\n(.*?)```'
NUMBER = r'[+-]?\d+\.?\d*(e[+-]?\d+)?'
NAMES = {name for name, *_ in fields_with_meaning()}
SECTIONS = {name.split('.')[0] for name in NAMES} - {'seed'}


@pytest.fixture
def session(monkeypatch):
  """JAX as in a user's session, and the folder of the scripts on the path."""
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))
  monkeypatch.setattr(objectives, 'OBJECTIVES', dict(objectives.OBJECTIVES))
  wide = jax.config.jax_enable_x64
  with jax.numpy_rank_promotion('allow'):
    yield
  jax.config.update('jax_enable_x64', wide)


@pytest.mark.parametrize(
  'page, count',
  [(OPERATIONS, 11), (ADDING, 1), (COMING, 1)],
  ids=['ops', 'adding', 'coming from'],
)
def test_code_prints_what_the_page_says(page, count, session, capsys):
  names = {}
  blocks = re.findall(PRINTS, page.read_text(), re.S)
  assert len(blocks) == count
  for code, expected in blocks:
    exec(code, names)
    printed = capsys.readouterr().out.split()
    for word, said in zip(printed, expected.split(), strict=True):
      assert word == said or close(word, said), (word, said)


def close(word, said):
  """Two numbers whose last digits may differ between machines."""
  numbers = all(re.fullmatch(NUMBER, text) for text in (word, said))
  return numbers and math.isclose(float(word), float(said), rel_tol=2e-3)


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_name_scripts_flags_and_settings_that_exist(page):
  written = [name for name, _ in re.findall(WRITES, page.read_text(), re.S)]
  text = re.sub(FENCED, '', page.read_text(), flags=re.S)
  mentioned = re.findall(r'`(experiments/[\w/]+\.py[^`\n]*)`', text)
  spans = [(words[0], words[1:]) for words in map(shlex.split, mentioned)]
  for script, arguments in (*commands(page), *spans):
    if script in written:
      continue
    source = with_imports(ROOT / script)
    taking = False
    for flag, word in itertools.pairwise(arguments):
      if flag == '--config' and word not in (*written, 'FILE.py'):
        assert word in recipes.NAMES or (ROOT / word).is_file(), word
    for word in arguments:
      if word.startswith('--'):
        # A benchmark makes flags of the numbers of its shape.
        number = rf'\b{word[2:].replace("-", "_")}=\d'
        known = f"'{word}'" in source or re.search(number, source)
        known = known or word == '--help'
        assert known, f'{script} has no {word}'
        taking = word == '--set'
      elif taking:
        check(word)


def with_imports(script):
  """The text of a script and of the scripts that it imports."""
  source = script.read_text()
  names = re.findall(r'^ *(?:import|from) (\w+)', source, re.M)
  beside = (script.parents[i] / f'{n}.py' for n in names for i in (0, 1))
  return source + ''.join(p.read_text() for p in beside if p.is_file())


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_settings_in_the_text_exist(page):
  text = re.sub(FENCED, '', page.read_text(), flags=re.S)
  if page == COMING:
    text = ours(text)
  for span in re.findall(r'`([^`\n]+)`', text):
    for word in span.split():
      named = re.match(rf'({"|".join(SECTIONS)})\.[\w.]+(=|$)', word)
      if named and not word.endswith('.py'):
        check(word)
  named = re.findall(r"objective='(\w+)'", text)
  assert set(named) <= set(objectives.OBJECTIVES)


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_recipes_in_the_text_exist(page):
  text = re.sub(FENCED, '', page.read_text(), flags=re.S)
  named = re.findall(r'`((?:embedded|paper)/[a-z]\w*)`', text)
  for group, arms in re.findall(r' (\w+)/\{([\w,]+)\}', page.read_text()):
    named += [f'{group}/{arm}' for arm in arms.split(',')]
  assert set(named) <= set(recipes.NAMES)
  if page == ROOT / 'experiments' / 'README.md':
    arms = {name for name in recipes.NAMES if name.startswith('embedded/')}
    assert arms <= set(named)


def test_every_reduction_has_a_row_for_those_who_come():
  table = COMING.read_text().split('### Reductions')[1].split('### ')[0]
  named = re.findall(r'^\| `(\w+)`', table, re.M)
  assert named == list(masking.REDUCTIONS)


def ours(text):
  """Tables without the columns that hold other projects' names."""
  kept, column = [], None
  for line in text.splitlines():
    cells = [cell.strip() for cell in line.split('|')]
    if not line.startswith('|'):
      column = None
      kept.append(line)
    elif 'here' in cells:
      column = cells.index('here')
    elif column:
      kept.append(cells[column])
  return '\n'.join(kept)


def test_eight_questions_are_answered_in_one_hop():
  """The page names a file, and the file defines what the page names."""
  table = ADDING.read_text().split('## Where is ...?')[1].split('\n\n')[1]
  rows = [row.split('|')[1:4] for row in table.splitlines()[2:]]
  assert len(rows) == 8
  for question, link, names in rows:
    path = ADDING.parent / re.search(r'\]\((.*)\)', link)[1]
    source = path.read_text()
    for name in re.findall('`(.*?)`', names):
      defined = rf'^(def|class) {name}\b|^{name} = '
      assert re.search(defined, source, re.M), (question, name)
    for equation in re.findall(r'Eq\. \d', question):
      assert equation in source, question


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
  text = re.sub(FENCED, '', page.read_text(), flags=re.S)
  for link in re.findall(r'\]\((?!https?:)([^)\s]+)\)', text):
    path, _, anchor = link.partition('#')
    target = page.parent / path if path else page
    assert target.exists(), link
    if anchor:
      titles = re.findall('^#+ (.*)', target.read_text(), re.M)
      assert anchor in map(anchor_of, titles), link


def anchor_of(title):
  """As GitHub makes it."""
  return re.sub(r'[^\w\s-]', '', title.lower()).replace(' ', '-')


def check(word):
  """A setting and, where it has a value, that it takes it."""
  name, given, value = word.partition('=')
  stage = re.match(r'stages\.(\w+)\.', name)
  if not given or value in ('...', ''):
    assert re.sub(r'^stages\.\w+\.', 'stages.NAME.', name) in NAMES, word
  else:
    stages = (Stage(stage[1]),) if stage else (Stage(),)
    override(Config(stages=stages, mesh=MeshConfig(tensor=16)), word)


def commands(page):
  """(script, arguments) of each call in the page's shell blocks."""
  for language, block in re.findall(FENCED, page.read_text(), re.S):
    for line in block.replace('\\\n', ' ').splitlines():
      if language == 'bash' and '.venv/bin/python ' in line:
        words = shlex.split(line.rpartition('.venv/bin/python ')[2])
        if words[0] != '-m':
          yield words[0], words[1:]


@pytest.fixture
def run(session, tmp_path, monkeypatch):
  """Writes the files of a page and gives a function that runs a script."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  for name, code in re.findall(WRITES, ADDING.read_text(), re.S):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(code)

  def call(script, arguments):
    if not script.startswith('experiments/'):
      runpy.run_path(script)
      return
    module = pathlib.Path(script).stem
    monkeypatch.delitem(sys.modules, module, raising=False)
    assert importlib.import_module(module).main(arguments) == 0

  return call


# The example of the page in seconds.
SMALL = (
  *('model.architecture.width=16', 'model.architecture.kv_heads=1'),
  *('model.architecture.heads=2', 'model.architecture.head_size=8'),
  *('model.architecture.mlp_width=32', 'model.architecture.layers=1'),
  *('stages.imitate.steps=2', 'stages.mine.steps=2', 'data.batch_size=4'),
  *('eval.ks=1', 'eval.prompts=4', 'eval.samples=2', 'eval.kl_prompts=0'),
  *('log.report=false', 'log.progress=false', 'log.tensorboard=false'),
)


@pytest.mark.slow
def test_a_dataset_a_reward_and_an_objective_of_ones_own(run, capsys):
  rows, prepare, train = list(commands(ADDING))[:3]
  run(*rows)
  run(*prepare)
  said = capsys.readouterr().out
  assert 'expert: 100.00% of 100 answers pass mine.reward:near' in said
  assert 'teacher: 50.50% of 200 answers' in said
  script, arguments = train
  run(script, [*arguments, '--set', *SMALL])
  last = json.loads(
    pathlib.Path('runs/mine/metrics.jsonl').read_text().splitlines()[-1]
  )
  assert last['stage'] == 'mine' and 'eval/test/pass@1' in last
  records = pathlib.Path('runs/mine/metrics.jsonl').read_text()
  assert '"train/own_logp"' in records and '"train/loss_kl"' in records


@pytest.mark.slow
def test_the_whole_example_of_what_can_be_added(run):
  """As it stands: then the same from a folder, and its export."""
  done = []
  for script, arguments in commands(ADDING):
    if 'compile_check' not in script:
      run(script, arguments)
      done.append(pathlib.Path(script).stem)
  assert done == ['rows', 'prepare_data', 'train', 'model', 'train', 'export']
