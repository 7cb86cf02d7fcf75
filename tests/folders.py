"""Small Hugging Face folders, whole and damaged, for tests."""

import copy
import json

import safetensors.numpy
import tokenizers
import torch
import transformers

from gft_jax.huggingface import tensor_files

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


def change_json(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_config(folder, **changes):
  change_json(folder / 'config.json', **changes)


def change_tensors(folder, **changes):
  """Replaces or adds tensors of the one file; None removes one."""
  path = folder / tensor_files.SINGLE
  tensors = safetensors.numpy.load_file(path) | changes
  tensors = {k: v for k, v in tensors.items() if v is not None}
  safetensors.numpy.save_file(tensors, path)
