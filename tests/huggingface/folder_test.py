"""Folders in and out, against transformers (torch, CPU, float32)."""

import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from gft_jax import huggingface
from gft_jax.config import ConfigError, MeshConfig, Stage, override
from gft_jax.huggingface import tensor_files
from gft_jax.loop import train
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh
from gft_jax.policy import load_policy, restore_stage

ROOT = pathlib.Path(__file__).parents[2]
SMOLLM2 = pathlib.Path('~/.cache/gft_jax/SmolLM2-135M-Instruct').expanduser()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('qwen2')
  folders.write_torch_model(path, 'qwen2')
  return path


@pytest.fixture
def copy(folder, tmp_path):
  """A copy to change."""
  return pathlib.Path(shutil.copytree(folder, tmp_path / 'copy'))


def torch_logp(folder, rows):
  """Log-probabilities [len(row), V] of each row, alone and unpadded."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager'
  )
  with torch.no_grad():
    return [
      model(torch.tensor(row[None])).logits[0].log_softmax(-1).numpy()
      for row in rows
    ]


def our_logp(model, params, prompts, length, responses):
  """Log-probabilities [B, G, T, V] that predict the response tokens."""

  @jax.jit
  def run(params):
    def call(*arguments, method):
      return model.apply({'params': params}, *arguments, method=method)

    prefix = call(prompts, length, method='prefill')
    hidden = call(prefix, responses, method='respond')
    logits = hidden.astype(jnp.float32) @ call(method='head')
    return jax.nn.log_softmax(logits)

  return np.asarray(run(params))


def assert_parity(folder, model, params, vocabulary, tolerance):
  """Ragged prompts, one of a single token; two responses each."""
  rng = np.random.default_rng(0)
  prompts = rng.integers(2, vocabulary, (3, 7), np.int32)
  length = np.array([7, 1, 4], np.int32)
  responses = rng.integers(2, vocabulary, (3, 2, 6), np.int32)
  ours = our_logp(model, params, prompts, length, responses)
  rows = [
    np.concatenate([prompts[b, : length[b]], responses[b, g]])
    for b in range(3)
    for g in range(2)
  ]
  theirs = torch_logp(folder, rows)
  for row, expected in enumerate(theirs):
    b, g = divmod(row, 2)
    first = length[b] - 1
    np.testing.assert_allclose(
      ours[b, g], expected[first : first + 6], atol=tolerance
    )


@pytest.mark.parametrize('family', folders.FAMILIES)
def test_load_and_save_agree_with_transformers(family, tmp_path):
  source, copy = tmp_path / 'source', tmp_path / 'copy'
  folders.write_torch_model(source, family, max_shard_size='20KB')
  assert (source / tensor_files.INDEX).is_file()
  model, params, tokenizer = huggingface.load(source)
  assert_parity(source, model, params, len(folders.WORDS), tolerance=2e-4)

  huggingface.save(copy, model, params, tokenizer)
  rows = [np.array([5, 9, 60, 3])]
  np.testing.assert_array_equal(
    torch_logp(copy, rows), torch_logp(source, rows)
  )
  assert huggingface.load(copy)[0] == model
  read = transformers.PreTrainedTokenizerFast.from_pretrained(copy)
  assert read('w3 w5').input_ids == tokenizer('w3 w5').input_ids == [5, 7]
  generation = transformers.GenerationConfig.from_pretrained(copy)
  assert generation.eos_token_id == tokenizer.eos_token_id


def tensors_of(folder):
  """Name -> (dtype, shape, bytes) over all files of a folder."""
  return {
    name: (array.dtype.name, array.shape, array.tobytes())
    for path in folder.glob('*.safetensors')
    for name, array in safetensors.numpy.load_file(path).items()
  }


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_a_round_trip_in_the_stored_dtype_keeps_every_bit(
  dtype, folder, tmp_path
):
  """Sharded in, one file out, in three files out."""
  source = tmp_path / 'source'
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=getattr(torch, dtype)
  )
  model.save_pretrained(source, max_shard_size='20KB')
  folders.tiny_tokenizer().save_pretrained(source)
  model, params, tokenizer = huggingface.load(source, param_dtype=dtype)
  for name, size in (('one', 10**9), ('several', 9_000)):
    huggingface.save(
      tmp_path / name, model, params, tokenizer, max_shard_size=size
    )
    assert tensors_of(tmp_path / name) == tensors_of(source)
    written = json.loads((tmp_path / name / 'config.json').read_text())
    assert written['torch_dtype'] == dtype
  assert len(list((tmp_path / 'one').glob('*.safetensors'))) == 1
  assert len(list((tmp_path / 'several').glob('*.safetensors'))) > 2
  rows = [np.array([5, 9, 60, 3])]
  np.testing.assert_array_equal(
    torch_logp(tmp_path / 'several', rows), torch_logp(source, rows)
  )


@pytest.mark.parametrize('stored', ['float16', 'bfloat16'])
def test_half_precision_weights_are_widened(stored, copy):
  path = copy / tensor_files.SINGLE
  exact = safetensors.numpy.load_file(path)
  half = {k: v.astype(jnp.dtype(stored)) for k, v in exact.items()}
  safetensors.numpy.save_file(half, path)
  _, params, _ = huggingface.load(copy)
  assert params['embedding'].dtype == jnp.float32
  np.testing.assert_array_equal(
    params['embedding'],
    half['model.embed_tokens.weight'].astype(np.float32),
  )


def shardings_on(data, fsdp, tensor):
  mesh = make_mesh(MeshConfig(data, fsdp, tensor))
  return functools.partial(sharding.parameter_shardings, mesh=mesh)


@pytest.mark.parametrize('family', ['qwen2', 'llama'])
@pytest.mark.parametrize('mesh', [(1, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_each_device_is_given_its_part(family, mesh, tmp_path):
  folders.write_torch_model(tmp_path, family, max_shard_size='20KB')
  _, whole, _ = huggingface.load(tmp_path)
  shardings = shardings_on(*mesh)
  _, params, _ = huggingface.load(tmp_path, shardings=shardings)
  jax.tree.map(np.testing.assert_array_equal, params, whole)
  wanted = shardings(jax.eval_shape(lambda: whole))
  for leaf, placed in zip(jax.tree.leaves(params), jax.tree.leaves(wanted)):
    assert leaf.sharding == placed and leaf.committed
  divided = params['blocks']['gate']['kernel']
  assert divided.addressable_data(0).size * mesh[1] * mesh[2] == divided.size


@pytest.mark.slow
def test_a_run_from_a_folder_on_eight_devices(
  config, tmp_path, monkeypatch, capsys
):
  """Folder -> mesh -> a step -> folder in several files, its stops kept."""
  policy = load_policy(config)
  source = tmp_path / 'source'
  huggingface.save(source, *policy[:3])
  stops = [policy.tokenizer.eos_token_id, 5]
  folders.change_json(source / 'generation_config.json', eos_token_id=stops)
  for assignment in (
    *(f'model.path={source}', 'mesh.data=2', 'mesh.fsdp=2', 'mesh.tensor=2'),
    *('eval.base=', 'log.report=false'),
  ):
    config = override(config, assignment)
  stage = Stage('tuned', '', 'gft', 1)
  config = dataclasses.replace(config, stages=(stage,))
  loaded = load_policy(config)
  assert loaded.eos_ids == tuple(stops)
  kernel = loaded.params['blocks']['down']['kernel']
  assert tuple(kernel.sharding.spec) == (None, 'tensor', 'fsdp')
  jax.tree.map(np.testing.assert_array_equal, loaded.params, policy.params)

  train(config, tmp_path / 'run')
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))
  monkeypatch.delitem(sys.modules, 'export', raising=False)
  import export

  arguments = ['--workdir', str(tmp_path / 'run'), '--stage', 'tuned']
  out = tmp_path / 'out'
  sizes = ('--max-shard-size', '8KB')
  assert export.main([*arguments, '--out', str(out), *sizes]) == 0
  assert len(list(out.glob('model-*.safetensors'))) > 1
  generation = transformers.GenerationConfig.from_pretrained(out)
  assert generation.eos_token_id == stops
  tuned, _ = restore_stage(loaded, tmp_path / 'run', 'tuned')
  assert_parity(out, loaded.model, tuned, len(policy.tokenizer), 2e-4)
  for wrong, message in (
    (('--out', str(out), '--max-shard-size', '8'), "'8' is not a size"),
    (('--out', str(tmp_path / 'run')), 'is not of a model, and would be over'),
    (('--out', str(source)), 'write another folder'),
  ):
    capsys.readouterr()
    assert export.main([*arguments, *wrong]) == 2
    assert message in capsys.readouterr().err


def test_no_part_reads_more_than_itself(folder, monkeypatch):
  """Bytes read: the whole once, cut 8 ways, where nothing is replicated."""
  reads = []
  read = tensor_files.StoredTensor.read

  def counted(tensor, index):
    part = read(tensor, index)
    reads.append((tensor.name, part.shape, part.nbytes))
    return part

  monkeypatch.setattr(tensor_files.StoredTensor, 'read', counted)
  _, params, _ = huggingface.load(folder, shardings=shardings_on(1, 8, 1))
  assert sum(size for *_, size in reads) == sum(
    leaf.nbytes for leaf in jax.tree.leaves(params)
  )
  gates = [shape for name, shape, _ in reads if '0.mlp.gate_proj' in name]
  assert gates == [(48, 32 // 8)] * 8  # Columns of the torch tensor.
  norms = [shape for name, shape, _ in reads if name == 'model.norm.weight']
  assert norms == [(32,)]  # Replicated: read once.

  # Two replicas over `data` read nothing twice; heads go to `tensor`.
  reads.clear()
  huggingface.load(folder, shardings=shardings_on(2, 2, 2))
  queries = [
    shape for name, shape, _ in reads if '0.self_attn.q_proj.w' in name
  ]
  assert queries == [(32 // 2, 32 // 2)] * 4
  assert sum(size for *_, size in reads) == sum(
    leaf.nbytes for leaf in jax.tree.leaves(params)
  )


def test_the_host_reads_one_layer_at_a_time(folder, monkeypatch):
  sizes = []
  read = tensor_files.StoredTensor.read
  monkeypatch.setattr(
    tensor_files.StoredTensor,
    'read',
    lambda *arguments: sizes.append(1) or read(*arguments),
  )
  huggingface.load(folder)
  assert len(sizes) == len(
    safetensors.numpy.load_file(folder / 'model.safetensors')
  )


def test_generation_settings_of_the_source_are_carried_over(copy, tmp_path):
  """What the folder says about generating stays, with both of its EOS."""
  given = {
    'do_sample': True,
    'temperature': 0.7,
    'repetition_penalty': 1.05,
    'eos_token_id': [7, 1],
    'pad_token_id': 5,
  }
  (copy / 'generation_config.json').write_text(json.dumps(given))
  model, params, tokenizer = huggingface.load(copy)
  out = tmp_path / 'out'
  huggingface.save(out, model, params, tokenizer, source=copy)
  written = json.loads((out / 'generation_config.json').read_text())
  # The tokenizer's EOS ends what was trained on: it comes first.
  assert written == given | {'eos_token_id': [1, 7], 'bos_token_id': None}
  config = json.loads((out / 'config.json').read_text())
  assert config['eos_token_id'] == [1, 7] and config['pad_token_id'] == 5
  generation = transformers.GenerationConfig.from_pretrained(out)
  assert generation.eos_token_id == [1, 7] and generation.temperature == 0.7
  assert huggingface.stop_ids(out, tokenizer, 70) == (1, 7)


def test_tokenizer_and_chat_template_are_exported(tmp_path):
  """Written by transformers, or copied byte for byte from the source."""
  source = tmp_path / 'source'
  folders.write_torch_model(source, 'llama')
  _, _, tokenizer = huggingface.load(source)
  tokenizer.chat_template = (
    '{% for m in messages %}w1 {{ m.content }} {% endfor %}w2'
  )
  tokenizer.save_pretrained(source)
  settings = json.loads((source / 'tokenizer_config.json').read_text())
  settings['tokenizer_class'] = 'PreTrainedTokenizerFast'  # transformers 4.
  (source / 'tokenizer_config.json').write_text(json.dumps(settings))
  loaded = huggingface.load(source)
  huggingface.save(tmp_path / 'written', *loaded)
  huggingface.save(tmp_path / 'copied', *loaded, source=source)
  for out in (tmp_path / 'written', tmp_path / 'copied'):
    read = transformers.AutoTokenizer.from_pretrained(out)
    messages = [{'role': 'user', 'content': 'w3'}]
    assert read.apply_chat_template(messages).input_ids == [3, 5, 4]
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    copied = (tmp_path / 'copied' / name).read_bytes()
    assert copied == (source / name).read_bytes()


def test_the_source_is_not_overwritten(copy):
  loaded = huggingface.load(copy)
  before = tensors_of(copy)
  with pytest.raises(ConfigError, match='write another folder'):
    huggingface.save(copy / '..' / 'copy', *loaded, source=copy)
  assert tensors_of(copy) == before and (copy / 'config.json').is_file()


def test_an_export_replaces_an_earlier_one(folder, tmp_path, monkeypatch):
  """Weights of another sharding go; unfinished, it has no config.json."""
  model, params, tokenizer = huggingface.load(folder)
  out = tmp_path / 'out'
  huggingface.save(out, model, params, tokenizer, max_shard_size=20_000)
  huggingface.save(out, model, params, tokenizer)
  assert [p.name for p in out.glob('model*')] == ['model.safetensors']
  huggingface.save(out, model, params, tokenizer, max_shard_size=20_000)
  assert not (out / 'model.safetensors').exists()
  assert tensors_of(out) == tensors_of(folder)

  def full_disk(*_):
    raise OSError('No space left on device')

  monkeypatch.setattr(tokenizer, 'save_pretrained', full_disk)
  with pytest.raises(OSError, match='No space'):
    huggingface.save(out, model, params, tokenizer)
  assert not (out / 'config.json').exists()


def test_one_file_at_a_time_is_in_memory(folder, tmp_path, monkeypatch):
  model, params, tokenizer = huggingface.load(folder)
  sizes = []
  save_file = safetensors.numpy.save_file

  def counted(tensors, path, **settings):
    sizes.append(sum(array.nbytes for array in tensors.values()))
    save_file(tensors, path, **settings)

  monkeypatch.setattr(tensor_files.safetensors.numpy, 'save_file', counted)
  out = tmp_path / 'out'
  huggingface.save(out, model, params, tokenizer, max_shard_size=20_000)
  assert len(sizes) > 2 and max(sizes) <= 20_000
  index = json.loads((out / tensor_files.INDEX).read_text())
  assert index['metadata']['total_size'] == sum(sizes)


def test_a_tokenizer_longer_than_the_vocabulary(copy):
  tokenizer = folders.tiny_tokenizer()
  tokenizer.add_tokens([f'more{i}' for i in range(6)])
  tokenizer.save_pretrained(copy)
  huggingface.load(copy)  # 70 tokens for 70 rows.
  tokenizer.add_tokens(['one_too_many'])
  tokenizer.save_pretrained(copy)
  with pytest.raises(ConfigError, match='one_too_many'):
    huggingface.load(copy)


def test_rotary_buffers_and_a_copied_head_are_accepted(folder, copy):
  tensors = safetensors.numpy.load_file(copy / tensor_files.SINGLE)
  folders.change_tensors(
    copy,
    **{
      'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(4, np.float32),
      'lm_head.weight': tensors['model.embed_tokens.weight'],
    },
  )
  assert huggingface.load(copy)[0] == huggingface.load(folder)[0]


MEASURE = """
import functools, sys
import jax, jax.numpy as jnp
from gft_jax import huggingface
from gft_jax.config import MeshConfig
from gft_jax.parallel.mesh import make_mesh
from gft_jax.parallel.sharding import parameter_shardings

def peak():
  # Not ru_maxrss, which begins at what the parent of the process had.
  status = open('/proc/self/status').read()
  return int(status.split('VmHWM:')[1].split()[0]) * 1024

mesh = make_mesh(MeshConfig(fsdp=int(sys.argv[2])))
shardings = functools.partial(parameter_shardings, mesh=mesh)
# What any first call costs: the runtime, and a tokenizer without weights.
huggingface.load_tokenizer(sys.argv[1])
jax.block_until_ready(jnp.ones(3) + 1)
before = peak()
_, params, _ = huggingface.load(sys.argv[1], shardings=shardings)
jax.block_until_ready(params)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print((peak() - before) / size, size)
"""


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 8])
def test_loading_costs_little_more_memory_than_the_model(devices):
  """Peak of a fresh process, over what it had before.

  Seen: 1.45 to 1.60 of the model, one parameter of a fifth of it in transit. A
  mapped file read to its end costs 2.49.
  """
  if not SMOLLM2.is_dir() or not pathlib.Path('/proc/self/status').exists():
    pytest.skip(f'no SmolLM2 at {SMOLLM2}, or no /proc')
  done = subprocess.run(
    [sys.executable, '-c', MEASURE, str(SMOLLM2), str(devices)],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  )
  ratio, size = map(float, done.stdout.split())
  assert size > 500e6 and 0.9 < ratio < 1.8


@pytest.mark.slow
def test_smollm2_agrees_with_transformers():
  """135M real weights, 4-bit ones widened; minutes on a cold cache."""
  target = pathlib.Path('~/.cache/gft_jax/smollm2-135m').expanduser()
  script = ROOT / 'experiments' / 'fetch_smollm2.py'
  fetched = subprocess.run(
    [sys.executable, script, target], capture_output=True, text=True
  )
  if fetched.returncode != 0:
    pytest.skip(f'no SmolLM2: {fetched.stderr.splitlines()[-1]}')
  assert fetched.stdout.strip() == str(target)
  model, params, tokenizer = huggingface.load(target)
  assert_parity(target, model, params, len(tokenizer), tolerance=2e-4)
