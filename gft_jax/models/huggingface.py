"""Hugging Face folders, in and out; the one file that knows their names.

A folder is config.json, one or many safetensors and a tokenizer. What this
model does not compute is refused by name: weights that load and then mean
something else are worse than an error.
"""

import contextlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import transformers
from flax import traverse_util
from huggingface_hub.errors import StrictDataclassError

from gft_jax.config import Architecture, ConfigError, one_of, require
from gft_jax.models.transformer import Transformer

CLASSES = {'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM'}
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
TOKENIZERS = ('tokenizer.json', 'tokenizer.model', 'vocab.json')

# What transformers takes where config.json is silent.
DEFAULTS = {
  'attention_bias': False,
  'head_dim': None,
  'hidden_act': 'silu',
  'layer_types': None,
  'mlp_bias': False,
  'num_key_value_heads': None,
  'partial_rotary_factor': 1.0,
  'quantization_config': None,
  'rms_norm_eps': 1e-6,
  'rope_parameters': None,
  'rope_scaling': None,
  'rope_theta': 10000.0,
  'tie_word_embeddings': False,
  'use_sliding_window': False,
}
# The only value of each field that this model computes.
SUPPORTED = {
  'attention_bias': False,
  'hidden_act': 'silu',
  'mlp_bias': False,
  'partial_rotary_factor': 1.0,
  'quantization_config': None,
  'use_sliding_window': False,
}


def load(
  directory: str | pathlib.Path,
  *,
  dtype: str = 'float32',
  param_dtype: str = 'float32',
  remat: str = 'dots',
) -> tuple[Transformer, Any, transformers.PreTrainedTokenizerBase]:
  """Reads a model of the Llama or Qwen2 family.

  The weights pass through the host one parameter at a time and land,
  uncommitted, on JAX's default device. Where they do not fit on one device,
  call this under `jax.default_device(jax.devices('cpu')[0])` and shard after.

  Args:
    directory: holds config.json (rope_theta and rope_scaling, or the
      rope_parameters of transformers 5), safetensors in float32, float16 or
      bfloat16, and the tokenizer.
    dtype: of the computation.
    param_dtype: of the parameters returned.
    remat: see `Transformer`.

  Returns:
    (model, params, tokenizer).

  Raises:
    ConfigError: something is missing, broken, or not supported.
  """
  directory = pathlib.Path(directory).expanduser()
  architecture = read_architecture(directory)
  tokenizer = load_tokenizer(directory)
  require(
    len(tokenizer) <= architecture.vocab_size,
    f'{directory}: the tokenizer has {len(tokenizer)} tokens, config.json'
    f' says vocab_size={architecture.vocab_size}',
  )
  model = Transformer(architecture, dtype, param_dtype, remat)
  return model, _read_params(directory, model), tokenizer


def save(
  directory: str | pathlib.Path,
  model: Transformer,
  params: Any,
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
  """Writes a folder that `transformers` and `load` read, with equal logits.

  Weights keep the dtype of `params`, which must be addressable from this
  process. config.json comes last: a folder that has it is complete.
  """
  directory = pathlib.Path(directory).expanduser()
  directory.mkdir(parents=True, exist_ok=True)
  architecture = model.architecture
  leaves = traverse_util.flatten_dict(params, sep='/')

  tensors = {}
  for path, (name, shape) in _tensors(architecture).items():
    leaf = np.asarray(leaves[path])
    layers = leaf if _stacked(path) else leaf[None]
    for i, layer in enumerate(layers):
      tensors[name.format(i)] = _to_torch(path, layer, shape)
  safetensors.numpy.save_file(
    tensors, directory / WEIGHTS, metadata={'format': 'pt'}
  )
  tokenizer.save_pretrained(directory)
  ids = {
    f'{kind}_token_id': getattr(tokenizer, f'{kind}_token_id')
    for kind in ('bos', 'eos', 'pad')
  }
  _write_json(directory / 'generation_config.json', ids)
  _write_json(
    directory / 'config.json',
    _to_config(architecture) | ids | {'torch_dtype': leaf.dtype.name},
  )


def load_tokenizer(
  directory: str | pathlib.Path,
) -> transformers.PreTrainedTokenizerBase:
  """Reads the tokenizer of a folder, never the network.

  Raises:
    ConfigError: no tokenizer, a broken one, or one without EOS.
  """
  directory = pathlib.Path(directory).expanduser()
  require(
    any((directory / name).is_file() for name in TOKENIZERS),
    f'{directory} has no tokenizer ({", ".join(TOKENIZERS)})',
  )
  if (directory / TOKENIZERS[0]).is_file():
    _read_json(directory / TOKENIZERS[0])
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      directory, local_files_only=True
    )
  except (OSError, ValueError, StrictDataclassError) as error:
    raise ConfigError(
      f'{directory}: transformers cannot read the tokenizer or config.json:'
      f' {" ".join(str(error).split())}'
    ) from error
  require(
    tokenizer.eos_token_id is not None,
    f'{directory}: the tokenizer has no EOS, so no response could end; set'
    ' eos_token in tokenizer_config.json',
  )
  return tokenizer


def read_architecture(directory: str | pathlib.Path) -> Architecture:
  """The shape that config.json of a folder describes.

  Raises:
    ConfigError: no config.json, or a feature that this model lacks.
  """
  path = pathlib.Path(directory).expanduser() / 'config.json'
  config = DEFAULTS | _read_json(path)
  _refuse_unsupported(config, path)

  def field(name: str) -> Any:
    require(name in config, f'{path} has no {name}')
    return config[name]

  theta, scaling = _rope(config, path)
  heads = field('num_attention_heads')
  return Architecture(
    vocab_size=field('vocab_size'),
    width=field('hidden_size'),
    layers=field('num_hidden_layers'),
    heads=heads,
    kv_heads=field('num_key_value_heads') or heads,
    head_size=field('head_dim') or field('hidden_size') // heads,
    mlp_width=field('intermediate_size'),
    rope_theta=theta,
    rope_scaling=scaling,
    norm_epsilon=field('rms_norm_eps'),
    qkv_bias=field('model_type') == 'qwen2',
    tied_head=field('tie_word_embeddings'),
    max_positions=field('max_position_embeddings'),
  )


def _refuse_unsupported(config: dict[str, Any], path: pathlib.Path) -> None:
  require('model_type' in config, f'{path} has no model_type')
  one_of(f'{path}: model_type', config['model_type'], CLASSES)
  for name, value in SUPPORTED.items():
    require(
      config[name] == value,
      f'{path}: {name}={config[name]!r} is not supported, only {value!r}',
    )
  kinds = set(config['layer_types'] or ()) - {'full_attention'}
  require(
    not kinds,
    f'{path}: layer_types has {", ".join(sorted(kinds))}; only full_attention'
    ' is supported',
  )


def _rope(
  config: dict[str, Any], path: pathlib.Path
) -> tuple[float, tuple[float, float, float, int] | None]:
  """Base and Llama-3 scaling, in the old or the transformers-5 spelling."""
  given = config['rope_parameters'] or config['rope_scaling'] or {}
  rope = {'rope_theta': config['rope_theta'], 'rope_type': 'default'} | given
  if 'rope_type' not in given and 'type' in given:  # transformers < 4.43.
    rope['rope_type'] = given['type']
  one_of(f'{path}: rope_type', rope['rope_type'], ('default', 'llama3'))
  if rope['rope_type'] == 'default':
    return rope['rope_theta'], None
  names = (
    'factor',
    'low_freq_factor',
    'high_freq_factor',
    'original_max_position_embeddings',
  )
  missing = [name for name in names if name not in rope]
  require(not missing, f'{path}: rope_type llama3 without {", ".join(missing)}')
  return rope['rope_theta'], tuple(rope[name] for name in names)


def _to_config(a: Architecture) -> dict[str, Any]:
  """config.json in the spelling that transformers 4 and 5 both read."""
  family = 'qwen2' if a.qkv_bias else 'llama'
  scaling = None
  if a.rope_scaling is not None:
    factor, low, high, original_context = a.rope_scaling
    scaling = {
      'rope_type': 'llama3',
      'factor': factor,
      'low_freq_factor': low,
      'high_freq_factor': high,
      'original_max_position_embeddings': original_context,
    }
  return {
    'architectures': [CLASSES[family]],
    'model_type': family,
    'vocab_size': a.vocab_size,
    'hidden_size': a.width,
    'intermediate_size': a.mlp_width,
    'num_hidden_layers': a.layers,
    'num_attention_heads': a.heads,
    'num_key_value_heads': a.kv_heads,
    'head_dim': a.head_size,
    'max_position_embeddings': a.max_positions,
    'rms_norm_eps': a.norm_epsilon,
    'rope_theta': a.rope_theta,
    'rope_scaling': scaling,
    'hidden_act': 'silu',
    'tie_word_embeddings': a.tied_head,
  }


def _tensors(a: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
  """Parameter path -> name ({} is the layer) and shape of the torch tensor."""
  queries, keys = a.heads * a.head_size, a.kv_heads * a.head_size
  layer = {
    'attention_norm/scale': ('input_layernorm.weight', (a.width,)),
    'query/kernel': ('self_attn.q_proj.weight', (queries, a.width)),
    'key/kernel': ('self_attn.k_proj.weight', (keys, a.width)),
    'value/kernel': ('self_attn.v_proj.weight', (keys, a.width)),
    'output/kernel': ('self_attn.o_proj.weight', (a.width, queries)),
    'mlp_norm/scale': ('post_attention_layernorm.weight', (a.width,)),
    'gate/kernel': ('mlp.gate_proj.weight', (a.mlp_width, a.width)),
    'up/kernel': ('mlp.up_proj.weight', (a.mlp_width, a.width)),
    'down/kernel': ('mlp.down_proj.weight', (a.width, a.mlp_width)),
  }
  if a.qkv_bias:
    layer |= {
      'query/bias': ('self_attn.q_proj.bias', (queries,)),
      'key/bias': ('self_attn.k_proj.bias', (keys,)),
      'value/bias': ('self_attn.v_proj.bias', (keys,)),
    }
  top = {
    'embedding': ('model.embed_tokens.weight', (a.vocab_size, a.width)),
    'final_norm/scale': ('model.norm.weight', (a.width,)),
  }
  if not a.tied_head:
    top['head'] = ('lm_head.weight', (a.vocab_size, a.width))
  return top | {
    f'blocks/{path}': (f'model.layers.{{}}.{name}', shape)
    for path, (name, shape) in layer.items()
  }


def tensor_name(architecture: Architecture, path: str) -> str:
  """The torch tensor of a parameter, '{}' where the layer's number stands."""
  return _tensors(architecture)[path][0]


def _stacked(path: str) -> bool:
  return path.startswith('blocks/')


def _from_torch(
  path: str, tensor: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  """torch stores a matrix as [out, in], a kernel here is [in, out]."""
  return (tensor if path == 'embedding' else tensor.T).reshape(shape)


def _to_torch(
  path: str, leaf: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  """Inverse of `_from_torch`; safetensors writes contiguous memory only."""
  if path == 'embedding':
    return leaf
  return np.ascontiguousarray(leaf.reshape(shape[::-1]).T)


def _read_params(directory: pathlib.Path, model: Transformer) -> Any:
  a = model.architecture
  one = jnp.ones((1, 1), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), one, one[0])['params']
  leaves = {}
  with contextlib.ExitStack() as stack:
    files = _open(directory, stack)
    _check(directory, files, a)
    for path, leaf in traverse_util.flatten_dict(shapes, sep='/').items():
      name, _ = _tensors(a)[path]
      array = np.empty(leaf.shape, leaf.dtype)
      layers = array if _stacked(path) else array[None]
      for i, layer in enumerate(layers):
        name_i = name.format(i)
        tensor = files[name_i].get_tensor(name_i)
        layer[...] = _from_torch(path, tensor, layer.shape)
      leaves[path] = jnp.asarray(array)
  return traverse_util.unflatten_dict(leaves, sep='/')


def _open(
  directory: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, Any]:
  """Tensor name -> open safetensors file that holds it."""
  if (directory / WEIGHTS).is_file():
    names = [WEIGHTS]
  else:
    require(
      (directory / INDEX).is_file(),
      f'{directory} has neither {WEIGHTS} nor {INDEX}',
    )
    names = sorted(set(_read_json(directory / INDEX)['weight_map'].values()))
  files = {}
  for name in names:
    path = directory / name
    require(path.is_file(), f'{directory} has no {name}, which {INDEX} lists')
    try:
      file = stack.enter_context(safetensors.safe_open(path, 'numpy'))
    except safetensors.SafetensorError as error:
      raise ConfigError(f'{path} is not readable: {error}') from error
    files |= dict.fromkeys(file.keys(), file)
  return files


def _check(
  directory: pathlib.Path, files: dict[str, Any], a: Architecture
) -> None:
  """The folder holds exactly the tensors of the architecture."""
  expected = {
    name.format(i): shape
    for path, (name, shape) in _tensors(a).items()
    for i in range(a.layers if _stacked(path) else 1)
  }
  missing = sorted(expected.keys() - files.keys())
  require(not missing, f'{directory} has no tensor {_some(missing)}')

  # Derived from the configuration; early Llama checkpoints store it.
  extra = {
    name
    for name in files.keys() - expected.keys()
    if not name.endswith('rotary_emb.inv_freq')
  }
  if a.tied_head and 'lm_head.weight' in extra:
    extra.remove('lm_head.weight')
    embedding = 'model.embed_tokens.weight'
    require(
      np.array_equal(
        files['lm_head.weight'].get_tensor('lm_head.weight'),
        files[embedding].get_tensor(embedding),
      ),
      f'{directory}: lm_head.weight is not the embedding, although config.json'
      ' says tie_word_embeddings=true; it must say false',
    )
  require(
    not extra, f'{directory} has an unknown tensor {_some(sorted(extra))}'
  )
  for name, shape in expected.items():
    view = files[name].get_slice(name)
    require(
      tuple(view.get_shape()) == shape,
      f'{directory}: {name} is {tuple(view.get_shape())}, config.json makes it'
      f' {shape}',
    )
    require(
      view.get_dtype() in ('F32', 'F16', 'BF16'),
      f'{directory}: {name} is {view.get_dtype()}, not F32, F16 or BF16',
    )


def _some(names: list[str]) -> str:
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return ', '.join(names[:3]) + more


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  require(path.parent.is_dir(), f'no folder {path.parent}')
  require(path.is_file(), f'{path.parent} has no {path.name}')
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ConfigError(f'{path} is not JSON: {error}') from error


def _write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
  path.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')
