"""Damaged folders: one line that names the fault, exit code 2, no traces.

Each goes through the scripts as a user calls them; a few in a process of
their own, where every byte on stderr counts.
"""

import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import folders
import numpy as np
import pytest
import safetensors.numpy

from gft_jax.huggingface import tensor_files

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = str(ROOT / 'experiments/configs/quickstart.py')
NORM = 'model.norm.weight'
UP = 'model.layers.1.mlp.up_proj.weight'


def write(name, content):
  return lambda folder: (folder / name).write_bytes(content)


def config(**changes):
  return lambda folder: folders.change_config(folder, **changes)


def tensor(name, array):
  return lambda folder: folders.change_tensors(folder, **{name: array})


def remove(*patterns):
  def change(folder):
    for pattern in patterns:
      for path in folder.glob(pattern):
        path.unlink()

  return change


def cut(name, share):
  def change(folder):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])

  return change


def doubled_key(folder):
  text = (folder / 'config.json').read_text()
  (folder / 'config.json').write_text('{"hidden_size": 64, ' + text[1:])


def file_in_its_place(folder):
  shutil.rmtree(folder)
  folder.write_text('{}')


def sharded(**moved):
  """Two files and an index; `moved` says where the index has a tensor."""

  def change(folder):
    path = folder / tensor_files.SINGLE
    tensors = safetensors.numpy.load_file(path)
    path.unlink()
    places = {n: f'part-{i % 2}.safetensors' for i, n in enumerate(tensors)}
    for file in ('part-0.safetensors', 'part-1.safetensors'):
      part = {n: t for n, t in tensors.items() if places[n] == file}
      safetensors.numpy.save_file(part, folder / file)
    (folder / tensor_files.INDEX).write_text(
      json.dumps({'weight_map': places | moved})
    )

  return change


def both_hold_a_tensor(folder):
  sharded()(folder)
  part = safetensors.numpy.load_file(folder / 'part-0.safetensors')
  path = folder / 'part-1.safetensors'
  safetensors.numpy.save_file(safetensors.numpy.load_file(path) | part, path)


def pickled_only(folder):
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')


def adapter(folder):
  remove('*')(folder)
  write('adapter_config.json', b'{"base_model_name_or_path": "a/b"}')(folder)


def without_eos(folder):
  tokenizer = folders.tiny_tokenizer()
  tokenizer.eos_token = None
  tokenizer.save_pretrained(folder)


def ids_beyond_the_vocabulary(folder):
  tokenizer = folders.tiny_tokenizer()
  tokenizer.add_tokens([f'more{i}' for i in range(7)])
  tokenizer.save_pretrained(folder)


def with_value(name, value):
  def change(folder):
    path = folder / tensor_files.SINGLE
    array = safetensors.numpy.load_file(path)[name].copy()
    array.flat[-1] = value
    folders.change_tensors(folder, **{name: array})

  return change


FLOATS = np.ones(32, np.float32)
DAMAGE = {
  'no folder': (shutil.rmtree, 'no folder'),
  'a file': (file_in_its_place, 'is a file, not the folder of a model'),
  'empty folder': (remove('*'), 'has no config.json'),
  'no config': (remove('config.json'), 'has no config.json'),
  'a PEFT adapter': (adapter, 'is a PEFT adapter, not a model'),
  'cut config': (cut('config.json', 0.5), 'config.json is not JSON'),
  'empty config': (write('config.json', b''), 'config.json is not JSON'),
  'a list': (write('config.json', b'[{}]'), 'is JSON, but not an object'),
  'empty object': (write('config.json', b'{}'), 'has no model_type'),
  'not UTF-8': (write('config.json', b'{"a": "\xe9"}'), "not JSON: 'utf-8'"),
  'doubled key': (doubled_key, "the key 'hidden_size' stands twice"),
  'null': (config(hidden_size=None), 'hidden_size=None is not a positive'),
  'negative size': (config(num_hidden_layers=-1), 'num_hidden_layers=-1 is'),
  'zero size': (config(intermediate_size=0), 'intermediate_size=0 is not'),
  'zero heads': (config(num_attention_heads=0), 'num_attention_heads=0 is not'),
  'a string': (config(vocab_size='70'), "vocab_size='70' is not a positive"),
  'a fraction': (config(hidden_size=32.5), 'hidden_size=32.5 is not a pos'),
  'heads': (
    config(num_attention_heads=5, head_dim=None),
    'hidden_size=32 is not a multiple of num_attention_heads=5',
  ),
  'key heads': (config(num_key_value_heads=3), 'is not a multiple of num_key'),
  'another model': (config(model_type='mixtral'), "'mixtral' is not supported"),
  'quantised': (
    config(quantization_config={'quant_method': 'awq'}),
    "quant_method='awq'",
  ),
  'a billion layers': (
    config(num_hidden_layers=10**9, layer_types=None),
    'has no tensor model.layers.2.input_layernorm.weight, model.layers.3.',
  ),
  'a huge vocabulary': (
    config(vocab_size=10**15),
    'config.json makes it (1000',
  ),
  'one layer less': (
    config(num_hidden_layers=1, layer_types=None),
    'has an unknown tensor model.layers.1.',
  ),
  'no weights': (
    remove('*.safetensors'),
    'has neither model.safetensors nor model.safetensors.index.json',
  ),
  'only a pickle': (pickled_only, 'only pytorch_model.bin: nothing is unpick'),
  'cut weights': (cut('model.safetensors', 0.9), 'model.safetensors is not re'),
  'cut header': (cut('model.safetensors', 0.01), 'model.safetensors is not re'),
  'zeros': (write('model.safetensors', b'\0' * 99), 'is not readable'),
  'Git LFS': (
    write('model.safetensors', b'version https://git-lfs.github.com/spec/v1'),
    'model.safetensors is not readable',
  ),
  'missing tensor': (tensor(UP, None), f'has no tensor {UP}'),
  'extra tensor': (tensor('score.weight', FLOATS), 'unknown tensor score.wei'),
  'wrong shape': (
    tensor(UP, np.ones((32, 48), np.float32)),
    f'{UP} is (32, 48), config.json makes it (48, 32)',
  ),
  'wrong dtype': (
    tensor(NORM, np.ones(32, np.int8)),
    f'{NORM} is I8, not F32 or F16 or BF16',
  ),
  'float64': (tensor(NORM, np.ones(32)), f'{NORM} is F64, not F32'),
  'NaN': (with_value(UP, np.nan), 'model.layers.*.mlp.up_proj.weight has a v'),
  'infinity': (with_value(NORM, -np.inf), f'{NORM} has a value that is not f'),
  'another head': (
    tensor('lm_head.weight', np.ones((70, 32), np.float32)),
    'lm_head.weight is not the embedding, although',
  ),
  'no head': (
    config(tie_word_embeddings=False),
    'has no tensor lm_head.weight',
  ),
  'absent file': (
    sharded(**{NORM: 'part-2.safetensors'}),
    'has no part-2.safetensors, which model.safetensors.index.json lists',
  ),
  'wrong file': (
    sharded(**{'model.embed_tokens.weight': 'part-1.safetensors'}),
    'says that part-1.safetensors has model.embed_tokens.weight, but it',
  ),
  'in two files': (both_hold_a_tensor, 'in part-1.safetensors and in another'),
  'out of the folder': (
    sharded(**{NORM: '../model.safetensors'}),
    "'../model.safetensors', which is not the name of a file",
  ),
  'cut index': (
    lambda f: (sharded()(f), cut('model.safetensors.index.json', 0.7)(f)),
    'model.safetensors.index.json is not JSON',
  ),
  'no tokenizer': (remove('tokenizer*'), 'has no tokenizer (tokenizer.json'),
  'cut tokenizer': (cut('tokenizer.json', 0.5), 'cannot read the tokenizer'),
  'another tokenizer': (
    write('tokenizer.json', b'{"version": "1.0"}'),
    'cannot read the tokenizer (tokenizer.json)',
  ),
  'tokenizer settings': (
    write('tokenizer_config.json', b'{"eos_token": '),
    'tokenizer_config.json is not JSON',
  ),
  'no EOS': (without_eos, 'the tokenizer has no EOS'),
  'ids beyond': (ids_beyond_the_vocabulary, "'more6' with id 70, but config"),
  'EOS beyond': (
    write('generation_config.json', b'{"eos_token_id": [1, 70]}'),
    'eos_token_id=[1, 70] of generation_config.json',
  ),
  'generation': (
    write('generation_config.json', b'eos: 1'),
    'generation_config.json is not JSON',
  ),
}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  path = tmp_path_factory.mktemp('whole')
  folders.write_torch_model(path, 'qwen2')
  return path


@pytest.fixture
def broken(whole, tmp_path):
  """A copy to damage."""
  return pathlib.Path(shutil.copytree(whole, tmp_path / 'model'))


@pytest.fixture
def main(monkeypatch):
  """main of a script by its name, as if run from experiments/."""
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))

  def load(name):
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name).main

  return load


def contents(folder):
  if folder.is_file():
    return folder.read_bytes()
  return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('name', DAMAGE)
def test_one_line_and_exit_code_2_and_nothing_written(
  name, broken, tmp_path, main, capsys
):
  damage, message = DAMAGE[name]
  damage(broken)
  before = contents(broken)
  workdir = str(tmp_path / 'run')
  set_path = ['--set', f'model.path={broken}']
  calls = {
    'train': ['--config', QUICKSTART, '--workdir', workdir, *set_path],
    'generate': ['--model', str(broken), '--prompt', 'w1'],
    'evaluate': ['--model', str(broken), '--out', workdir],
  }
  for script, arguments in calls.items():
    code = main(script)(arguments)
    shown = capsys.readouterr()
    assert code == 2, script
    (line,) = shown.err.splitlines()
    assert line.startswith('error: ') and message in line
    assert str(broken) in line
    assert not shown.out
  assert contents(broken) == before
  assert sorted(tmp_path.iterdir()) == [broken] * broken.exists()


def test_the_whole_folder_answers(whole, main, capsys):
  """Else the lines above might say nothing about the damage."""
  arguments = ['--model', str(whole), '--prompt', 'w1', '--max-tokens', '2']
  assert main('generate')(arguments) == 0
  assert 'answer 1: 2 tokens' in capsys.readouterr().out


@pytest.mark.parametrize(
  'name, script',
  [('cut weights', 'train'), ('a typing mistake', 'generate')],
)
def test_a_process_of_its_own(name, script, broken, tmp_path):
  """Nothing else on stderr: no warning of a library, no progress."""
  path, message = str(broken), ''
  if name == 'a typing mistake':
    path = 'runs/tpyo'  # Which might be a repository of the hub.
    message = f'{path} is neither a folder nor a hub id within reach: the hub'
  else:
    damage, message = DAMAGE[name]
    damage(broken)
  arguments = {
    'train': [
      *('--config', QUICKSTART, '--workdir', str(tmp_path / 'run')),
      *('--set', f'model.path={path}'),
    ],
    'generate': ['--model', path, '--prompt', 'w1'],
  }
  done = subprocess.run(
    [sys.executable, f'experiments/{script}.py', *arguments[script]],
    cwd=ROOT,
    env=os.environ | {'HF_ENDPOINT': 'http://127.0.0.1:9'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and not done.stdout
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and message in line
  assert not (tmp_path / 'run').exists()
