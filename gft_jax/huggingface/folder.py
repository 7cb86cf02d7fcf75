"""Hugging Face folders, in and out; the one file that knows their tensors.

A folder is config.json, one or many safetensors and a tokenizer. What is read
stays on the disk until it goes to the device that wants it, part by part.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import traverse_util

from gft_jax.config import Architecture, require, user_path
from gft_jax.huggingface import hub, tensor_files
from gft_jax.huggingface.config_json import config_of, read_architecture
from gft_jax.huggingface.json_files import read_json, write_json
from gft_jax.huggingface.tensor_files import StoredTensor
from gft_jax.huggingface.tokenizer import (
  TOKEN_IDS,
  check_vocabulary,
  end_ids,
  keep_arguments,
  load_tokenizer,
  read_generation,
  save_tokenizer,
  stop_ids,
)
from gft_jax.models import lora
from gft_jax.models.transformer import Transformer
from gft_jax.types import Params

# Parameter path -> name ({} is the layer) and shape of the torch tensor.
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
DTYPES = ('F32', 'F16', 'BF16')
# How transformers calls a model with a `score`.
CLASSIFIER = 'ForSequenceClassification'
ONE_LABEL = {'id2label': {'0': 'reward'}, 'label2id': {'reward': 0}}


def load(
  directory: str | pathlib.Path,
  *,
  dtype: str = 'float32',
  param_dtype: str = 'float32',
  remat: str = 'dots',
  shardings: Callable[[Params], Params] | None = None,
) -> tuple[Transformer, Params, transformers.PreTrainedTokenizerBase]:
  """Reads a model of the Llama or Qwen2 family.

  The host holds one parameter at a time. With `shardings` each device is given
  its part, and that part alone is read; a process reads what its own devices
  want. Without, parameters land, uncommitted, on JAX's default device.

  Args:
    directory: a folder or a hub id, see `hub.folder_of`: config.json,
      safetensors in float32, float16 or bfloat16, and the tokenizer.
    dtype: of the computation.
    param_dtype: of the parameters returned. That of the folder keeps every
      bit; float32 keeps every value.
    remat: see `Transformer`.
    shardings: tree of shapes -> tree of shardings, such as
      `sharding.parameter_shardings` on a mesh; heads are not cut.

  Returns:
    (model, params, tokenizer).

  Raises:
    ConfigError: something is missing, broken, or not supported.
  """
  folder = hub.folder_of(directory)
  model = Transformer(read_architecture(folder), dtype, param_dtype, remat)
  return model, *_load(folder, model, {}, shardings)


def load_reward_model(
  directory: str | pathlib.Path,
  *,
  dtype: str = 'float32',
  shardings: Callable[[Params], Params] | None = None,
) -> tuple[Transformer, Params, transformers.PreTrainedTokenizerBase]:
  """Reads a sequence classifier with one label; see `models.reward_model`.

  Args and errors are those of `load`. The parameters are float32.

  Returns:
    (model, params, tokenizer) for `reward_model.scores`.
  """
  folder = hub.folder_of(directory)
  architecture = read_architecture(folder, task=CLASSIFIER)
  # It has no head for tokens.
  architecture = dataclasses.replace(architecture, tied_head=True)
  model = Transformer(architecture, dtype)
  score = {'score': jax.ShapeDtypeStruct((architecture.width, 1), jnp.float32)}
  return model, *_load(folder, model, score, shardings)


def save(
  directory: str | pathlib.Path,
  model: Transformer,
  params: Params,
  tokenizer: transformers.PreTrainedTokenizerBase,
  *,
  source: str | pathlib.Path | None = None,
  max_shard_size: int = 5 * 10**9,
  template_args: str = '',
  system: str = '',
) -> None:
  """Writes a folder that `transformers` and `load` read, with equal logits.

  Parameters with a `score` become a sequence classifier with one label, for
  `load_reward_model`. Weights keep the dtype of `params`, which must be
  addressable from this process. config.json comes last: a folder that has it is
  complete.

  Args:
    directory: to write; weights of an earlier model in it are deleted.
    model: what `load` gave.
    params: its parameters.
    tokenizer: written with its chat template.
    source: the folder or hub id that the policy came from. The files of its
      tokenizer are copied, and its generation_config.json is carried over.
    max_shard_size: bytes of a file, of which the host holds one at a time.
    template_args, system: defaults of its chat template; see `keep_arguments`.

  Raises:
    ConfigError: `directory` is `source`, or holds something else.
  """
  directory = user_path(directory)
  require(
    not directory.exists() or directory.is_dir(), f'{directory} is a file'
  )
  config = directory / 'config.json'
  require(
    not config.exists() or 'model_type' in read_json(config),
    f'{config} is not of a model, and would be overwritten; write another'
    ' folder',
  )
  if source is not None:
    source = hub.folder_of(source)
    require(
      source.resolve() != directory.resolve(),
      f'{directory} is the model that this one was made from; write another'
      ' folder',
    )
  architecture = model.architecture
  leaves = _by_path(params)
  tensors = _tensors(architecture, scored='score' in leaves)
  places = {
    name.format(i): (path, i)
    for path, (name, _) in tensors.items()
    for i in range(architecture.layers if _stacked(path) else 1)
  }
  shapes = {
    name: jax.ShapeDtypeStruct(tensors[path][1], leaves[path].dtype)
    for name, (path, _) in places.items()
  }

  def read(name: str) -> np.ndarray:
    path, i = places[name]
    # A new array: one that stays keeps the host's copy of it.
    leaf = leaves[path][i] if _stacked(path) else jnp.copy(leaves[path])
    return _to_torch(path, np.asarray(leaf), tensors[path][1])

  generation = _generation(source, tokenizer, architecture.vocab_size)
  directory.mkdir(parents=True, exist_ok=True)
  config.unlink(missing_ok=True)
  tensor_files.write(directory, shapes, read, max_shard_size)
  save_tokenizer(directory, tokenizer, source)
  keep_arguments(directory, template_args, system)
  write_json(directory / 'generation_config.json', generation)
  ids = {name: generation[name] for name in TOKEN_IDS}
  dtype = {'torch_dtype': leaves['embedding'].dtype.name}
  values = config_of(architecture)
  if 'score' in leaves:
    values = config_of(architecture, task=CLASSIFIER) | ONE_LABEL
  write_json(config, values | ids | dtype)


def _load(
  folder: pathlib.Path,
  model: Transformer,
  more: dict[str, jax.ShapeDtypeStruct],
  shardings: Callable[[Params], Params] | None,
) -> tuple[Params, transformers.PreTrainedTokenizerBase]:
  """Parameters of the model and of what stands on it, and the tokenizer."""
  architecture = model.architecture
  tensors = _tensors(architecture, scored='score' in more)
  stored = tensor_files.scan(folder)
  if 'score' in more and 'score.weight' in stored:
    labels = stored['score.weight'].shape[0]
    require(labels == 1, f'{folder}: score.weight has {labels} labels, not 1')
  _check(folder, stored, tensors, architecture)
  tokenizer = load_tokenizer(folder)
  check_vocabulary(folder, tokenizer, architecture.vocab_size)
  one = jnp.ones((1, 1), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), one, one[0])['params']
  params = _read_params(folder, stored, tensors, shapes | more, shardings)
  return params, tokenizer


def _generation(
  source: pathlib.Path | None,
  tokenizer: transformers.PreTrainedTokenizerBase,
  vocab_size: int,
) -> dict[str, object]:
  """generation_config.json of the source; the tokenizer gives what it lacks."""
  values = {name: getattr(tokenizer, name) for name in TOKEN_IDS}
  stops = end_ids(tokenizer)
  if source is not None:
    carried = read_generation(source).items()
    values |= {name: value for name, value in carried if value is not None}
    stops = stop_ids(source, tokenizer, vocab_size)
  if stops:
    values['eos_token_id'] = stops[0] if len(stops) == 1 else [*stops]
  return values


def _tensors(a: Architecture, *, scored: bool = False) -> Tensors:
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
  if scored:
    top['score'] = ('score.weight', (1, a.width))
  return top | {
    f'blocks/{path}': (f'model.layers.{{}}.{name}', shape)
    for path, (name, shape) in layer.items()
  }


def tensor_name(architecture: Architecture, path: str) -> str:
  """The torch tensor of a parameter, '{}' where the layer's number stands."""
  return _tensors(architecture)[path][0]


def _by_path(tree: Params):
  """'blocks/query/kernel' -> leaf, and so on."""
  return {'/'.join(path): x for path, x in lora.leaves_of(tree).items()}


def _stacked(path: str) -> bool:
  return path.startswith('blocks/')


def _torch_index(
  path: str,
  index: tuple[slice, ...],
  shape: tuple[int, ...],
  tensor_shape: tuple[int, ...],
) -> list[slice]:
  """Where a part of a parameter stands in its torch tensor; see `_from_torch`.

  Heads and their size are one dimension there, so a part has whole heads.
  """
  if path == 'embedding':
    return list(index)
  parts, found = list(zip(index, shape)), []
  for size in reversed(tensor_shape):
    part, count = parts.pop(0)
    each = size // count
    start, stop, _ = part.indices(count)
    found.append(slice(start * each, stop * each))
    while each > 1:
      part, count = parts.pop(0)
      assert part.indices(count) == (0, count, 1), f'{path}: a head is cut'
      each //= count
  return found[::-1]


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


def _read_params(
  folder: pathlib.Path,
  stored: dict[str, StoredTensor],
  tensors: Tensors,
  shapes: Params,
  shardings: Callable[[Params], Params] | None,
) -> Params:
  """Fills a tree of shapes from tensors that `_check` has passed."""
  placed = _by_path(shardings(shapes)) if shardings else {}
  leaves: dict[str, jax.Array] = {}
  for path, leaf in _by_path(shapes).items():
    read = functools.partial(_read_part, stored, tensors[path], path, leaf)
    if placed:
      leaves[path] = jax.make_array_from_callback(
        leaf.shape, placed[path], _once(read), leaf.dtype
      )
    else:
      leaves[path] = jnp.asarray(read((slice(None),) * len(leaf.shape)))
  for path, holds in _are_finite(leaves).items():
    name, _ = tensors[path]
    require(
      bool(holds),
      f'{folder}: {name.format("*")} has a value that is not finite',
    )
  return traverse_util.unflatten_dict(leaves, sep='/')


@jax.jit
def _are_finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Where the parameters lie: no mask of their size, no copy on the host."""
  return {path: jnp.isfinite(leaf).all() for path, leaf in leaves.items()}


def _read_part(
  stored: dict[str, StoredTensor],
  tensor: tuple[str, tuple[int, ...]],
  path: str,
  leaf: jax.ShapeDtypeStruct,
  index: tuple[slice, ...],
) -> np.ndarray:
  """The part of a parameter at `index`; a stacked one layer by layer."""
  name, _ = tensor
  size = [len(range(n)[part]) for part, n in zip(index, leaf.shape)]
  array = np.empty(size, leaf.dtype)
  if _stacked(path):
    numbers, rows = range(leaf.shape[0])[index[0]], array
    index, shape = index[1:], leaf.shape[1:]
  else:
    numbers, rows, shape = [0], array[None], leaf.shape
  for i, row in zip(numbers, rows):
    source = stored[name.format(i)]
    part = source.read(_torch_index(path, index, shape, source.shape))
    row[...] = _from_torch(path, part, row.shape)
  return array


def _once(
  read: Callable[[tuple[slice, ...]], np.ndarray],
) -> Callable[[tuple[slice, ...] | None], np.ndarray]:
  """`read`, which replicas on other devices do not call again."""
  parts: dict[tuple, np.ndarray] = {}

  def cached(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None  # JAX says which part it wants.
    key = tuple((part.start, part.stop) for part in index)
    if key not in parts:
      parts[key] = read(index)
    return parts[key]

  return cached


def _check(
  folder: pathlib.Path,
  stored: dict[str, StoredTensor],
  tensors: Tensors,
  a: Architecture,
) -> None:
  """The folder holds exactly these tensors, in shapes of the architecture."""
  # One by one: of absurdly many layers the first is missing already.
  names = (
    (name.format(i), shape)
    for path, (name, shape) in tensors.items()
    for i in range(a.layers if _stacked(path) else 1)
  )
  expected, missing = {}, []
  for name, shape in names:
    if name in stored:
      expected[name] = shape
    else:
      missing.append(name)
    if len(missing) > 3:
      break
  require(not missing, f'{folder} has no tensor {_some(missing)}')
  # Derived from the configuration; early Llama checkpoints store it.
  extra = {
    name
    for name in stored.keys() - expected.keys()
    if not name.endswith('rotary_emb.inv_freq')
  }
  if a.tied_head and 'lm_head.weight' in extra:
    extra.remove('lm_head.weight')
    require(
      _equal(stored['lm_head.weight'], stored['model.embed_tokens.weight']),
      f'{folder}: lm_head.weight is not the embedding, although config.json'
      ' says tie_word_embeddings=true; it must say false',
    )
  require(not extra, f'{folder} has an unknown tensor {_some(sorted(extra))}')
  for name, shape in expected.items():
    tensor = stored[name]
    require(
      tensor.shape == shape,
      f'{folder}: {name} is {tensor.shape}, config.json makes it {shape}',
    )
    require(
      tensor.dtype in DTYPES,
      f'{folder}: {name} is {tensor.dtype}, not {" or ".join(DTYPES)}',
    )


def _equal(a: StoredTensor, b: StoredTensor, rows: int = 4096) -> bool:
  """Whether two matrices hold the same, a few rows at a time."""
  if a.shape != b.shape:
    return False
  starts = range(0, a.shape[0], rows)
  whole = [slice(0, size) for size in a.shape[1:]]
  parts = ([slice(i, min(i + rows, a.shape[0])), *whole] for i in starts)
  return all(np.array_equal(a.read(part), b.read(part)) for part in parts)


def _some(names: list[str]) -> str:
  more = ' and more' if len(names) > 3 else ''
  return ', '.join(names[:3]) + more
