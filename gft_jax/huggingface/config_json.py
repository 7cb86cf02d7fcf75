"""config.json of the Llama and Qwen2 families <-> Architecture.

What this model does not compute is refused by name: weights that load and then
mean something else are worse than an error. A value of the wrong kind is
refused as well, before anything is allocated by it.
"""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from gft_jax.config import Architecture, ConfigError, one_of, require
from gft_jax.huggingface.json_files import read_json

FAMILIES = {'llama': 'Llama', 'qwen2': 'Qwen2'}

# What transformers takes where config.json is silent.
DEFAULTS = {
  'architectures': None,
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
  'use_sliding_window': False,
}
# In the order of Architecture.rope_scaling.
LLAMA3 = (
  'factor',
  'low_freq_factor',
  'high_freq_factor',
  'original_max_position_embeddings',
)


def read_architecture(
  directory: pathlib.Path, *, task: str = 'ForCausalLM'
) -> Architecture:
  """The shape that config.json of a folder describes.

  Args:
    directory: its config.json has rope_theta and rope_scaling, or the
      rope_parameters of transformers 5.
    task: what the model is for, as the name of its class ends.

  Raises:
    ConfigError: no config.json, a value that makes no sense, or a feature that
      this model lacks.
  """
  _refuse_other_folders(directory)
  path = directory / 'config.json'
  fields = _Fields(path, DEFAULTS | read_json(path))
  _refuse_unsupported(fields, task)
  heads = fields.count('num_attention_heads')
  width = fields.count('hidden_size')
  require(
    fields['head_dim'] is not None or width % heads == 0,
    f'{path}: hidden_size={width} is not a multiple of'
    f' num_attention_heads={heads}, and there is no head_dim',
  )
  kv_heads = fields.count('num_key_value_heads', default=heads)
  require(
    heads % kv_heads == 0,
    f'{path}: num_attention_heads={heads} is not a multiple of'
    f' num_key_value_heads={kv_heads}',
  )
  head_size = fields.count('head_dim', default=width // heads)
  require(
    head_size % 2 == 0,
    f'{path}: head_dim={head_size} is odd, but RoPE turns pairs',
  )
  theta, scaling = _rope(fields)
  return Architecture(
    vocab_size=fields.count('vocab_size'),
    width=width,
    layers=fields.count('num_hidden_layers'),
    heads=heads,
    kv_heads=kv_heads,
    head_size=head_size,
    mlp_width=fields.count('intermediate_size'),
    rope_theta=theta,
    rope_scaling=scaling,
    norm_epsilon=fields.number('rms_norm_eps'),
    qkv_bias=fields['model_type'] == 'qwen2',
    tied_head=fields.flag('tie_word_embeddings'),
    max_positions=fields.count('max_position_embeddings'),
  )


def config_of(
  a: Architecture, *, task: str = 'ForCausalLM'
) -> dict[str, object]:
  """config.json in the spelling that transformers 4 and 5 both read."""
  family = 'qwen2' if a.qkv_bias else 'llama'
  scaling = None
  if a.rope_scaling is not None:
    scaling = {'rope_type': 'llama3', **dict(zip(LLAMA3, a.rope_scaling))}
  return {
    'architectures': [FAMILIES[family] + task],
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


class _Fields:
  """The fields of a JSON object; each is checked as it is asked for."""

  def __init__(self, path: pathlib.Path, values: Mapping[str, object]):
    self.path = path
    self._values = values

  def __getitem__(self, name: str) -> Any:
    require(name in self._values, f'{self.path} has no {name}')
    return self._values[name]

  def count(self, name: str, *, default: int | None = None) -> int:
    value = self[name]
    if value is None and default is not None:
      return default
    self._require(type(value) is int and value > 0, name, 'a positive integer')
    return value

  def number(self, name: str) -> float:
    value = self[name]
    self._require(
      type(value) in (int, float) and 0 < value <= sys.float_info.max,
      name,
      'a positive number',
    )
    return float(value)

  def flag(self, name: str) -> bool:
    value = self[name]
    self._require(type(value) is bool, name, 'true or false')
    return value

  def table(self, name: str) -> Mapping[str, object]:
    value = self[name]
    self._require(value is None or isinstance(value, dict), name, 'an object')
    return value or {}

  def _require(self, holds: bool, name: str, kind: str) -> None:
    require(holds, f'{self.path}: {name}={self[name]!r} is not {kind}')


def _refuse_other_folders(directory: pathlib.Path) -> None:
  """Folders of something else, told by what they have in its place."""
  require(directory.is_dir(), f'no folder {directory}')
  if (directory / 'config.json').is_file():
    return
  adapter = directory / 'adapter_config.json'
  if adapter.is_file():
    base = read_json(adapter).get('base_model_name_or_path')
    raise ConfigError(
      f'{directory} is a PEFT adapter, not a model; merge it into its base'
      f' {base} (merge_and_unload of peft) and give the folder of the result'
    )
  require(
    not (directory / 'model_index.json').is_file(),
    f'{directory} is a pipeline of several models; give the folder of one',
  )


def _refuse_unsupported(fields: _Fields, task: str) -> None:
  path, family = fields.path, fields['model_type']
  require(
    isinstance(family, str) and family in FAMILIES,
    f'{path}: model_type={family!r} is not supported, only'
    f' {" and ".join(FAMILIES)}',
  )
  classes = fields['architectures']
  require(
    classes is None or classes == [FAMILIES[family] + task],
    f'{path}: architectures={classes!r} is not [{FAMILIES[family] + task!r}]',
  )
  quantised = fields.table('quantization_config')
  require(
    not quantised,
    f'{path}: the weights are quantised (quantization_config, quant_method='
    f'{quantised.get("quant_method")!r}); give the float32, float16 or bfloat16'
    ' model',
  )
  for name, value in SUPPORTED.items():
    require(
      fields[name] == value,
      f'{path}: {name}={fields[name]!r} is not supported, only {value!r}',
    )
  kinds = fields['layer_types']
  if kinds is None:
    return
  require(isinstance(kinds, list), f'{path}: layer_types is not a list')
  others = sorted({str(kind) for kind in kinds} - {'full_attention'})
  require(
    not others,
    f'{path}: layer_types has {", ".join(others)}; only full_attention is'
    ' supported',
  )
  layers = fields.count('num_hidden_layers')
  require(
    len(kinds) == layers,
    f'{path}: layer_types has {len(kinds)} names for'
    f' num_hidden_layers={layers}',
  )


def _rope(
  fields: _Fields,
) -> tuple[float, tuple[float, float, float, int] | None]:
  """Base and Llama-3 scaling, in the old or the transformers-5 spelling.

  Where both stand, the old one counts, as in transformers 5.23
  (modeling_rope_utils.py, convert_rope_params_to_dict).
  """
  path = fields.path
  given = fields.table('rope_scaling') or fields.table('rope_parameters')
  nested = [name for name, value in given.items() if isinstance(value, dict)]
  require(
    not nested,
    f'{path}: rope_parameters has {", ".join(nested)}; only one rope for all'
    ' layers is supported',
  )
  values: dict[str, object] = {
    'rope_theta': fields['rope_theta'],
    'rope_type': 'default',
    **given,
  }
  if 'rope_type' not in given and 'type' in given:  # transformers < 4.43.
    values['rope_type'] = given['type']
  one_of(f'{path}: rope_type', str(values['rope_type']), ('default', 'llama3'))
  share = values.get('partial_rotary_factor', 1.0)
  require(
    share == 1.0,
    f'{path}: partial_rotary_factor={share!r} is not supported, only 1.0',
  )
  rope = _Fields(path, values)
  theta = rope.number('rope_theta')
  if values['rope_type'] == 'default':
    return theta, None
  missing = [name for name in LLAMA3 if name not in values]
  require(not missing, f'{path}: rope_type llama3 without {", ".join(missing)}')
  factor, low, high = (rope.number(name) for name in LLAMA3[:3])
  require(
    low < high,
    f'{path}: low_freq_factor={low} is not below high_freq_factor={high}',
  )
  return theta, (factor, low, high, rope.count(LLAMA3[3]))
