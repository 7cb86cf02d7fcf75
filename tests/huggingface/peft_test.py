"""Exported adapters and merged weights, read by PEFT and transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft as peft_lib
import pytest
import safetensors
import tokenizers
import torch
import transformers

from gft_jax import huggingface
from gft_jax.config import PROJECTIONS, LoraConfig
from gft_jax.huggingface import peft
from gft_jax.models import lora

ROWS = np.random.default_rng(0).integers(0, 70, (2, 9), np.int32)


@pytest.fixture(scope='module', params=['llama', 'qwen2'])
def base(request, tmp_path_factory):
  """A folder of random weights, every tensor of it random."""
  folder = tmp_path_factory.mktemp(request.param)
  config = transformers.AutoConfig.for_model(
    request.param,
    vocab_size=70,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=request.param == 'qwen2',
  )
  model = transformers.AutoModelForCausalLM.from_config(config)
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0.0, 0.3, generator=generator)
  model.save_pretrained(folder)
  words = tokenizers.models.WordLevel({'<eos>': 0, 'w': 1}, '<eos>')
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(words), eos_token='<eos>'
  ).save_pretrained(folder)
  return folder


def adapted(base, targets):
  """(model, frozen, adapters, tokenizer), both factors random."""
  model, frozen, tokenizer = huggingface.load(base)
  model = model.clone(lora=LoraConfig(rank=3, alpha=6.0, targets=targets))
  rng = np.random.default_rng(1)
  adapters = jax.tree.map(
    lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32),
    lora.create(model, jax.random.key(0)),
  )
  return model, frozen, adapters, tokenizer


def logits_of(model, params):
  """[R, C, V] of ROWS, in this project."""
  variables = {'params': params}
  positions = jnp.broadcast_to(jnp.arange(ROWS.shape[1])[None], ROWS.shape)
  hidden = model.apply(
    variables, ROWS, positions, jnp.zeros_like(positions), method='packed'
  )
  return np.asarray(hidden @ model.apply(variables, method='head'))


def torch_logits(model):
  with torch.no_grad():
    return model(torch.tensor(ROWS, dtype=torch.long)).logits.numpy()


def tensors_in(folder):
  return safetensors.safe_open(folder / 'adapter_model.safetensors', 'numpy')


def read(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager'
  )


@pytest.mark.parametrize('targets', [PROJECTIONS, ('query', 'down')])
def test_peft_and_transformers_compute_the_same(base, tmp_path, targets):
  model, frozen, adapters, tokenizer = adapted(base, targets)
  ours = logits_of(model, lora.join(frozen, adapters))
  without = logits_of(model.clone(lora=LoraConfig()), frozen)
  assert np.abs(ours - without).max() > 0.1

  peft.save(tmp_path / 'adapter', model, adapters, base=str(base))
  loaded = peft_lib.PeftModel.from_pretrained(read(base), tmp_path / 'adapter')
  by_peft = torch_logits(loaded)
  np.testing.assert_allclose(by_peft, ours, atol=5e-5)
  # Of a name that is missing or unknown PEFT only warns.
  expected = {
    name.replace('.default', '')
    for name, _ in loaded.named_parameters()
    if 'lora' in name
  }
  with tensors_in(tmp_path / 'adapter') as file:
    assert set(file.keys()) == expected
  assert len(expected) == 2 * 2 * len(targets)

  merged = lora.merge(model, frozen, adapters)
  huggingface.save(tmp_path / 'merged', model, merged, tokenizer)
  by_transformers = torch_logits(read(tmp_path / 'merged'))
  np.testing.assert_allclose(by_transformers, by_peft, rtol=1e-5, atol=1e-5)


def test_the_folder_alone_is_enough(base, tmp_path):
  """PEFT finds the base, and the names are those of its documentation."""
  model, _, adapters, _ = adapted(base, ('query',))
  peft.save(tmp_path, model, adapters, base=str(base))
  config = json.loads((tmp_path / 'adapter_config.json').read_text())
  assert config['task_type'] == 'CAUSAL_LM'
  assert config['target_modules'] == ['q_proj']
  loaded = peft_lib.AutoPeftModelForCausalLM.from_pretrained(tmp_path)
  assert loaded.peft_config['default'].r == 3
  with tensors_in(tmp_path) as file:
    prefix = 'base_model.model.model.layers.1.self_attn.q_proj'
    a = file.get_tensor(f'{prefix}.lora_A.weight')
    b = file.get_tensor(f'{prefix}.lora_B.weight')
  np.testing.assert_array_equal(a.T, adapters['blocks']['query']['lora_a'][1])
  assert b.shape == (32, 3)
