"""Folders in and out, against transformers (torch, CPU, float32)."""

import copy
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import torch
import transformers

from gft_jax.config import ConfigError
from gft_jax.models import huggingface

ROOT = pathlib.Path(__file__).parents[2]
WORDS = ['<pad>', '<eos>', *(f'w{i}' for i in range(62))]
LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}
# Reduced, but with what tells the families apart. A context of 16 puts the
# three frequencies of Llama-3 scaling on both sides of its thresholds.
SHAPE = {
  'vocab_size': 70,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
}
FAMILIES = {
  'qwen2': ('qwen2', {'rope_theta': 1e6, 'tie_word_embeddings': True}),
  'llama': ('llama', {'rope_theta': 1e4, 'head_dim': 12}),
  'llama3': ('llama', {'rope_theta': 100.0, 'rope_scaling': LLAMA3}),
  'deepseek_math': ('llama', {'num_key_value_heads': 4, 'rms_norm_eps': 1e-6}),
}


def tiny_tokenizer():
  ids = {word: i for i, word in enumerate(WORDS)}
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, '<pad>'))
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, eos_token='<eos>', pad_token='<pad>'
  )


def write_torch_model(folder, family, **save_settings):
  """A random model of the family, every tensor of it random."""
  model_type, settings = FAMILIES[family]
  # A copy: transformers writes into the dictionaries it is given.
  config = transformers.AutoConfig.for_model(
    model_type, **copy.deepcopy(SHAPE | settings)
  )
  model = transformers.AutoModelForCausalLM.from_config(config)
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0.0, 0.3, generator=generator)
  model.save_pretrained(folder, **save_settings)
  tiny_tokenizer().save_pretrained(folder)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('qwen2')
  write_torch_model(path, 'qwen2')
  return path


@pytest.fixture
def broken(folder, tmp_path):
  """A copy to break."""
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


@pytest.mark.parametrize('family', FAMILIES)
def test_load_and_save_agree_with_transformers(family, tmp_path):
  source, copy = tmp_path / 'source', tmp_path / 'copy'
  write_torch_model(source, family, max_shard_size='20KB')
  assert (source / huggingface.INDEX).is_file()
  model, params, tokenizer = huggingface.load(source)
  assert_parity(source, model, params, len(WORDS), tolerance=2e-4)

  huggingface.save(copy, model, params, tokenizer)
  rows = [np.array([5, 9, 60, 3])]
  np.testing.assert_array_equal(
    torch_logp(copy, rows), torch_logp(source, rows)
  )
  assert huggingface.load(copy)[0] == model
  read = transformers.AutoTokenizer.from_pretrained(copy)
  assert read('w3 w5').input_ids == tokenizer('w3 w5').input_ids
  generation = transformers.GenerationConfig.from_pretrained(copy)
  assert generation.eos_token_id == tokenizer.eos_token_id


def change_config(folder, **changes):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize('stored', ['float16', 'bfloat16'])
def test_half_precision_weights_are_widened(stored, folder, broken):
  path = broken / huggingface.WEIGHTS
  exact = safetensors.numpy.load_file(path)
  half = {k: v.astype(jnp.dtype(stored)) for k, v in exact.items()}
  safetensors.numpy.save_file(half, path)
  _, params, _ = huggingface.load(broken)
  assert params['embedding'].dtype == jnp.float32
  np.testing.assert_array_equal(
    params['embedding'],
    half['model.embed_tokens.weight'].astype(np.float32),
  )
  model, params, tokenizer = huggingface.load(folder, param_dtype='bfloat16')
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {'bfloat16'}
  huggingface.save(broken, model, params, tokenizer)
  written = json.loads((broken / 'config.json').read_text())
  assert written['torch_dtype'] == 'bfloat16'
  torch_logp(broken, [np.array([5])])


def old_type(rope):
  """The spelling before transformers 4.43: type, not rope_type."""
  return {'type' if k == 'rope_type' else k: v for k, v in rope.items()}


@pytest.mark.parametrize(
  'spelling',
  [
    {'rope_theta': 5e5, 'rope_scaling': LLAMA3, 'rope_parameters': None},
    {
      'rope_theta': 5e5,
      'rope_scaling': old_type(LLAMA3),
      'rope_parameters': None,
    },
    {'rope_parameters': LLAMA3 | {'rope_theta': 5e5}},
  ],
)
def test_old_and_new_spelling_of_rope_are_one(spelling, broken):
  change_config(broken, **spelling)
  architecture = huggingface.read_architecture(broken)
  assert architecture.rope_theta == 5e5
  assert architecture.rope_scaling == (8.0, 1.0, 4.0, 16)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'model_type': 'mistral'}, "model_type='mistral' is not one of"),
    ({'model_type': 'qwen2_moe'}, 'did you mean qwen2'),
    ({'use_sliding_window': True}, 'use_sliding_window=True'),
    ({'layer_types': ['sliding_attention']}, 'sliding_attention'),
    ({'attention_bias': True}, 'attention_bias=True'),
    ({'mlp_bias': True}, 'mlp_bias=True'),
    ({'hidden_act': 'gelu'}, "hidden_act='gelu'"),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'rope_parameters': {'rope_type': 'yarn'}}, "rope_type='yarn'"),
    ({'rope_parameters': {'rope_type': 'llama3'}}, 'without factor'),
    ({'vocab_size': 9}, 'config.json says vocab_size=9'),
    ({'hidden_size': 64, 'head_dim': 8}, 'config.json makes it'),
    (
      {'num_hidden_layers': 3, 'layer_types': None},
      'has no tensor model.layers.2.input_layernorm',
    ),
    (
      {'num_hidden_layers': 1, 'layer_types': None},
      'has an unknown tensor model.layers.1.',
    ),
    ({'num_hidden_layers': 1}, 'must be equal to the number of `layer_types`'),
    ({'tie_word_embeddings': False}, 'has no tensor lm_head.weight'),
  ],
)
def test_unsupported_features_are_refused_by_name(changes, message, broken):
  change_config(broken, **changes)
  with pytest.raises(ConfigError) as error:
    huggingface.load(broken)
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def remove(name):
  return lambda folder: (folder / name).unlink()


def write(name, content):
  return lambda folder: (folder / name).write_bytes(content)


def without_eos(folder):
  tokenizer = tiny_tokenizer()
  tokenizer.eos_token = None
  tokenizer.save_pretrained(folder)


def with_tensor(name, array):
  def change(folder):
    path = folder / huggingface.WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors | {name: array}, path)

  return change


def index_of_absent_file(folder):
  (folder / huggingface.WEIGHTS).unlink()
  index = {'weight_map': {'model.norm.weight': 'part-1.safetensors'}}
  (folder / huggingface.INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
  'damage, message',
  [
    (shutil.rmtree, 'no folder'),
    (remove('config.json'), 'has no config.json'),
    (write('config.json', b'{"model_type": '), 'config.json is not JSON'),
    (write('config.json', b'{"model_type": "llama"}'), 'has no num_attention'),
    (remove('model.safetensors'), 'has neither model.safetensors nor'),
    (index_of_absent_file, 'has no part-1.safetensors'),
    (write('model.safetensors', b'\0' * 9), 'is not readable'),
    (remove('tokenizer.json'), 'has no tokenizer'),
    (write('tokenizer.json', b'{'), 'tokenizer.json is not JSON'),
    (without_eos, 'has no EOS'),
    (with_tensor('x', np.ones(1, np.float32)), 'unknown tensor x'),
    (with_tensor('model.norm.weight', np.ones(32, np.int8)), 'is I8, not F32'),
    (
      with_tensor('lm_head.weight', np.ones((70, 32), np.float32)),
      'lm_head.weight is not the embedding',
    ),
  ],
)
def test_broken_folders_give_one_line(damage, message, broken):
  damage(broken)
  with pytest.raises(ConfigError) as error:
    huggingface.load(broken)
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_rotary_buffers_and_a_copied_head_are_accepted(folder, broken):
  buffer = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  with_tensor(buffer, np.ones(4, np.float32))(broken)
  tensors = safetensors.numpy.load_file(broken / huggingface.WEIGHTS)
  with_tensor('lm_head.weight', tensors['model.embed_tokens.weight'])(broken)
  assert huggingface.load(broken)[0] == huggingface.load(folder)[0]


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
