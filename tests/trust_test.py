"""Nothing that is read is executed: what could, by its syntax, and real tries.

What an answer tries is in hostile_test.py.
"""

import ast
import importlib
import json
import pathlib
import pickle
import sys

import folders
import jax.numpy as jnp
import pytest

from gft_jax import huggingface
from gft_jax.config import Config, ConfigError, override, to_dict
from gft_jax.data import files
from gft_jax.data.columns import column_map
from gft_jax.huggingface import chat_template
from gft_jax.huggingface import tokenizer as tokenizer_lib
from gft_jax.run import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(
  path
  for room in ('gft_jax', 'experiments')
  for path in (ROOT / room).rglob('*.py')
)
# Modules that turn bytes into objects of any class, or text into code.
MODULES = {
  *('pickle', 'cPickle', '_pickle', 'dill', 'cloudpickle', 'joblib', 'shelve'),
  *('marshal', 'copyreg', 'yaml', 'code', 'codeop', 'runpy', 'pandas'),
}
BUILTINS = {'eval', 'exec', 'compile', '__import__', 'breakpoint', 'input'}
# Of any object: of torch, pandas, os, importlib, jinja2.
METHODS = {
  *('read_pickle', 'to_pickle', 'import_module', 'exec_module', 'run_path'),
  *('run_module', 'system', 'popen', 'Template', 'from_string'),
}
# What is named by the user, or by this package itself, and runs as such.
ALLOWED = {
  ('gft_jax/recipes/catalogue.py', 'imports runpy'),  # load: --config
  ('gft_jax/recipes/catalogue.py', 'calls run_path'),
  ('gft_jax/rewards/functions.py', 'calls import_module'),  # reward.function
  ('gft_jax/__init__.py', 'calls import_module'),  # names of this package
  ('gft_jax/data/__init__.py', 'calls import_module'),
}


def dangers(source):
  """What a file could execute data by."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      module = getattr(node, 'module', None)
      for name in [module] if module else [a.name for a in node.names]:
        if name.split('.')[0] in MODULES:
          yield f'imports {name}'
    if not isinstance(node, ast.Call):
      continue
    options = {k.arg: getattr(k.value, 'value', None) for k in node.keywords}
    for name in ('allow_pickle', 'trust_remote_code', 'shell'):
      if options.get(name, False) is not False:
        yield f'{name} is not False'
    match node.func:
      case ast.Name(name) if name in BUILTINS:
        yield f'calls {name}'
      case ast.Attribute(ast.Name('np' | 'numpy'), 'load'):
        if 'allow_pickle' not in options:
          yield 'np.load without allow_pickle=False'
      case ast.Attribute(ast.Name('torch'), 'load'):
        yield 'calls torch.load'
      case ast.Attribute(_, 'from_pretrained'):
        if 'trust_remote_code' not in options:
          yield 'from_pretrained without trust_remote_code=False'
      case ast.Attribute(_, name) | ast.Name(name) if name in METHODS:
        yield f'calls {name}'


def test_nothing_that_is_read_can_be_executed():
  found = {
    (str(path.relative_to(ROOT)), danger)
    for path in SOURCES
    for danger in dangers(path.read_text())
  }
  assert len(SOURCES) > 60
  assert found == ALLOWED


@pytest.mark.parametrize(
  ('source', 'danger'),
  [
    ('import pickle', 'imports pickle'),
    ('def f():\n  from yaml import load', 'imports yaml'),
    ('import torch\ntorch.load(path)', 'calls torch.load'),
    ('np.load(path)', 'np.load without allow_pickle=False'),
    ('np.load(path, allow_pickle=True)', 'allow_pickle is not False'),
    ('np.load(path, allow_pickle=trusted)', 'allow_pickle is not False'),
    ('eval(answer)', 'calls eval'),
    ('x = __import__(name)', 'calls __import__'),
    ('importlib.import_module(name)', 'calls import_module'),
    ('run_path(path)', 'calls run_path'),
    ('os.system(text)', 'calls system'),
    ('subprocess.run(text, shell=True)', 'shell is not False'),
    ('jinja2.Template(text)', 'calls Template'),
    ('A.from_pretrained(f)', 'from_pretrained without trust_remote_code=False'),
    (
      'A.from_pretrained(f, trust_remote_code=True)',
      'trust_remote_code is not',
    ),
  ],
)
def test_the_test_can_fail(source, danger):
  (found,) = dangers(source)
  assert found.startswith(danger)


@pytest.mark.parametrize(
  'source',
  [
    'np.load(path, allow_pickle=False)',
    're.compile(pattern)',
    'ast.literal_eval(text)',
    'model.eval()',
    'A.from_pretrained(f, trust_remote_code=False)',
  ],
)
def test_what_executes_nothing_is_no_danger(source):
  assert not list(dangers(source))


def test_what_is_read_unpickles_and_starts_nothing(tmp_path):
  """The interpreter's own audit, while libraries restore, load and parse."""
  dangers = {'pickle.find_class', 'os.system', 'subprocess.Popen', 'os.exec'}
  told = {'active': False, 'events': set()}

  def hook(event, arguments):
    if told['active']:
      told['events'].add(event)

  sys.addaudithook(hook)  # It stays: there is no way to take it back.
  state = {'params': {'embedding': jnp.ones((4, 3))}, 'step': jnp.ones(1)}
  checkpoint.save(tmp_path / 'run', 1, state, {'at': 1}, keep=1)
  folder = tmp_path / 'model'
  folders.write_torch_model(folder, 'llama')
  file = tmp_path / 'rows.jsonl'
  file.write_text('{"prompt": "1+1=", "answer": "2", "expert": "2"}\n')

  def read():
    checkpoint.restore(tmp_path / 'run', state)
    huggingface.load(folder)
    assert len(list(files.rows(file, column_map(file, '')))) == 1

  read()  # Imports, which execute modules.
  told['active'] = True
  try:
    read()
    assert not told['events'] & dangers
    assert 'open' in told['events']
    pickle.loads(pickle.dumps(pathlib.PurePosixPath('a')))
    assert 'pickle.find_class' in told['events'], 'the test can fail'
  finally:
    told['active'] = False


def test_code_in_the_folder_of_a_tokenizer_is_not_run(tmp_path, monkeypatch):
  """Nor is anybody asked: transformers would, and run it upon a y."""
  ran = tmp_path / 'ran'
  code = f'import pathlib\npathlib.Path({str(ran)!r}).touch()\n'
  mapped = {'AutoConfig': 'code.Config', 'AutoTokenizer': ['code.Own', None]}
  for name, text in {
    'config.json': json.dumps({'model_type': 'own', 'auto_map': mapped}),
    'tokenizer_config.json': json.dumps({'auto_map': mapped}),
    'vocab.json': '{"a": 0}',
    'merges.txt': '',
    'code.py': code,
  }.items():
    (tmp_path / name).write_text(text)
  monkeypatch.setattr('builtins.input', lambda _: 'y')
  with pytest.raises(ConfigError, match='contains custom code'):
    tokenizer_lib.load_tokenizer(tmp_path)
  assert not ran.exists()


@pytest.mark.parametrize(
  'attack',
  [
    "{{ cycler.__init__.__globals__['os'].system('touch FILE') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append('x') }}",
  ],
)
def test_a_chat_template_stays_in_its_sandbox(attack, tmp_path):
  tokenizer = folders.tiny_tokenizer()
  tokenizer.chat_template = attack.replace('FILE', str(tmp_path / 'executed'))
  with pytest.raises(ConfigError, match=r'the chat template .* fails'):
    chat_template.ChatTemplate(tokenizer)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('setting', ['reward.function', 'eval.reward'])
@pytest.mark.parametrize('script', ['evaluate', 'generate_teacher'])
def test_the_config_of_a_run_does_not_choose_what_is_imported(
  script, setting, tmp_path, monkeypatch, capsys
):
  """runpy:run_path executes a file whose name is the prompt of a dataset."""
  settings = override(Config(), f'{setting}=runpy:run_path')
  (tmp_path / 'config.json').write_text(json.dumps(to_dict(settings)))
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))
  monkeypatch.delitem(sys.modules, script, raising=False)
  flags = ['--workdir', str(tmp_path), '--stage', 'gft']
  if script == 'evaluate':
    flags += ['--out', str(tmp_path / 'out')]
  else:
    flags += ['--data', 'arithmetic', '--out', str(tmp_path / 'out.jsonl')]
  assert importlib.import_module(script).main(flags) == 2
  said = capsys.readouterr().err
  assert f'name it yourself: --set {setting}=' in said and said.count('\n') == 1
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_an_export_imports_no_reward(tmp_path, monkeypatch, capsys):
  """It scores nothing, so it may read the config of any run."""
  (tmp_path / 'marker_of_a_reward.py').write_text('')
  monkeypatch.syspath_prepend(str(tmp_path))
  settings = override(Config(), 'reward.function=marker_of_a_reward:f')
  run = tmp_path / 'run'
  run.mkdir()
  (run / 'config.json').write_text(json.dumps(to_dict(settings)))
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))
  import export

  flags = ['--workdir', str(run), '--stage', 'gft', '--out', str(run / 'out')]
  assert export.main(flags) == 2
  assert 'checkpoint' in capsys.readouterr().err  # It got as far as that.
  assert 'marker_of_a_reward' not in sys.modules
