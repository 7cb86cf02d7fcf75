"""What config.json may say, and what is refused by name."""

import copy
import json

import folders
import pytest
import transformers

from gft_jax.config import ConfigError
from gft_jax.huggingface.config_json import config_of, read_architecture
from gft_jax.models import presets

YARN = {'rope_type': 'yarn', 'factor': 4.0}
CONFIG = folders.SHAPE | {
  'model_type': 'qwen2',
  'architectures': ['Qwen2ForCausalLM'],
  'rope_theta': 1e6,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': True,
}


def read(folder, **changes):
  (folder / 'config.json').write_text(json.dumps(CONFIG | changes))
  return read_architecture(folder)


def refusal(folder, **changes):
  with pytest.raises(ConfigError) as error:
    read(folder, **changes)
  assert '\n' not in str(error.value)
  assert str(error.value).startswith(f'{folder}/config.json')
  return str(error.value)


def old_type(rope):
  """The spelling before transformers 4.43: type, not rope_type."""
  return {'type' if k == 'rope_type' else k: v for k, v in rope.items()}


@pytest.mark.parametrize(
  'spelling',
  [
    {'rope_theta': 5e5, 'rope_scaling': folders.LLAMA3},
    {'rope_theta': 5e5, 'rope_scaling': old_type(folders.LLAMA3)},
    {'rope_parameters': folders.LLAMA3 | {'rope_theta': 5e5}},
  ],
)
def test_old_and_new_spelling_of_rope_are_one(spelling, tmp_path):
  architecture = read(tmp_path, **spelling)
  assert architecture.rope_theta == 5e5
  assert architecture.rope_scaling == (8.0, 1.0, 4.0, 16)


@pytest.mark.parametrize(
  'name', ['SMOLLM2_135M', 'QWEN2_5_MATH_7B', 'LLAMA_3_1_8B']
)
def test_what_is_written_is_read(name, tmp_path):
  """By transformers too, in the fields that it computes with."""
  architecture = getattr(presets, name)
  written = config_of(architecture)
  (tmp_path / 'config.json').write_text(json.dumps(written))
  assert read_architecture(tmp_path) == architecture
  theirs = transformers.AutoConfig.from_pretrained(tmp_path)
  assert theirs.hidden_size == architecture.width
  assert theirs.rope_parameters['rope_theta'] == architecture.rope_theta
  assert theirs.num_key_value_heads == architecture.kv_heads


@pytest.mark.parametrize(
  'model_type',
  [
    *('mistral', 'mixtral', 'qwen2_moe', 'qwen2_vl', 'qwen3', 'qwen3_moe'),
    *('gemma', 'gemma2', 'gemma3_text', 'phi', 'phi3', 'llama4', 'deepseek_v3'),
    *('gpt2', '', None, 3, ['llama']),
  ],
)
def test_other_architectures_are_refused(model_type, tmp_path):
  message = refusal(tmp_path, model_type=model_type)
  assert f'model_type={model_type!r} is not supported' in message
  assert 'only llama and qwen2' in message


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'architectures': ['Qwen2ForSequenceClassification']},
      "['Qwen2ForSequenceClassification'] is not ['Qwen2ForCausalLM']",
    ),
    ({'use_sliding_window': True}, 'use_sliding_window=True is not supported'),
    (
      {'layer_types': ['full_attention', 'sliding_attention']},
      'layer_types has sliding_attention; only full_attention',
    ),
    ({'layer_types': ['full_attention']}, 'has 1 names for num_hidden_layers'),
    ({'layer_types': 'full_attention'}, 'layer_types is not a list'),
    ({'layer_types': [None, {}]}, 'layer_types has None, {}'),
    ({'attention_bias': True}, 'attention_bias=True is not supported'),
    ({'mlp_bias': True}, 'mlp_bias=True is not supported'),
    ({'hidden_act': 'gelu'}, "hidden_act='gelu' is not supported"),
    ({'hidden_act': 'gelu_pytorch_tanh'}, "only 'silu'"),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    (
      {'rope_parameters': {'partial_rotary_factor': 0.5}},
      'partial_rotary_factor=0.5',
    ),
    (
      {'quantization_config': {'quant_method': 'gptq', 'bits': 4}},
      "quant_method='gptq'); give the float32, float16 or bfloat16 model",
    ),
    ({'quantization_config': {'quant_method': 'awq'}}, "quant_method='awq'"),
    ({'quantization_config': {'quant_method': 'fp8'}}, "quant_method='fp8'"),
    ({'rope_scaling': {'type': 'linear', 'factor': 2.0}}, "'linear' is not"),
    ({'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}, "'dynamic' is not"),
    ({'rope_scaling': YARN}, "rope_type='yarn' is not one of default, llama3"),
    ({'rope_parameters': YARN}, "rope_type='yarn' is not one of default"),
    ({'rope_scaling': {'rope_type': 'longrope'}}, "'longrope' is not one"),
    ({'rope_scaling': {'type': 'mrope'}}, "rope_type='mrope'"),
    ({'rope_scaling': {'rope_type': 'llama3'}}, 'llama3 without factor, low_'),
    (
      {'rope_scaling': folders.LLAMA3 | {'low_freq_factor': 4.0}},
      'low_freq_factor=4.0 is not below high_freq_factor=4.0',
    ),
    (
      {'rope_scaling': folders.LLAMA3 | {'factor': '8'}},
      "factor='8' is not a positive number",
    ),
    ({'rope_scaling': 'yarn'}, "rope_scaling='yarn' is not an object"),
    (
      {'rope_parameters': {'full_attention': {'rope_theta': 1e6}}},
      'rope_parameters has full_attention',
    ),
    ({'num_attention_heads': 5}, 'hidden_size=32 is not a multiple of'),
    ({'num_key_value_heads': 3}, 'num_attention_heads=4 is not a multiple of'),
    ({'head_dim': 7}, 'head_dim=7 is odd'),
    ({'hidden_size': None}, 'hidden_size=None is not a positive integer'),
    ({'hidden_size': '32'}, "hidden_size='32' is not a positive integer"),
    ({'hidden_size': 32.0}, 'hidden_size=32.0 is not a positive integer'),
    ({'hidden_size': 0}, 'hidden_size=0 is not a positive integer'),
    ({'num_hidden_layers': -2}, 'num_hidden_layers=-2 is not a positive'),
    ({'num_attention_heads': True}, 'num_attention_heads=True is not a pos'),
    ({'rms_norm_eps': float('nan')}, 'rms_norm_eps=nan is not a positive'),
    ({'rope_theta': float('inf')}, 'rope_theta=inf is not a positive number'),
    ({'tie_word_embeddings': 'yes'}, "='yes' is not true or false"),
  ],
)
def test_what_is_not_computed_is_refused_by_name(changes, message, tmp_path):
  assert message in refusal(tmp_path, **changes)


HOSTILE = (
  *(None, True, 0, -1, 10**400, 1e308, float('nan'), '', 'x', '32', '\n'),
  *([], [None], {}, {'type': []}, {'rope_type': {}}, [[]] * 3),
)


@pytest.mark.parametrize('name', [*CONFIG, 'head_dim', 'layer_types', 'x'])
def test_no_value_of_a_field_is_a_crash(name, tmp_path):
  """Either an architecture or one line, whatever a field holds."""
  for value in HOSTILE:
    try:
      read(tmp_path, **{name: copy.copy(value)})
    except ConfigError as error:
      assert '\n' not in str(error)


@pytest.mark.parametrize(
  'name', sorted({*folders.SHAPE, 'model_type'} - {'num_key_value_heads'})
)
def test_a_missing_field_is_named(name, tmp_path):
  values = {k: v for k, v in CONFIG.items() if k != name}
  (tmp_path / 'config.json').write_text(json.dumps(values))
  with pytest.raises(ConfigError, match=f'config.json has no {name}'):
    read_architecture(tmp_path)


def test_there_are_as_many_heads_of_keys_where_nothing_is_said(tmp_path):
  assert read(tmp_path, num_key_value_heads=None).kv_heads == 4


def test_an_adapter_is_not_a_model(tmp_path):
  adapter = {'peft_type': 'LORA', 'base_model_name_or_path': 'owner/base'}
  (tmp_path / 'adapter_config.json').write_text(json.dumps(adapter))
  with pytest.raises(ConfigError) as error:
    read_architecture(tmp_path)
  assert 'is a PEFT adapter, not a model' in str(error.value)
  assert 'merge it into its base owner/base (merge_and_unload' in str(
    error.value
  )


def test_a_pipeline_is_not_a_model(tmp_path):
  (tmp_path / 'model_index.json').write_text('{}')
  with pytest.raises(ConfigError, match='is a pipeline of several models'):
    read_architecture(tmp_path)


@pytest.mark.parametrize(
  'both',
  [
    {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6}},
    {
      'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6},
      'rope_theta': 5e5,
    },
    {
      'rope_parameters': folders.LLAMA3 | {'factor': 2.0, 'rope_theta': 1e6},
      'rope_scaling': folders.LLAMA3 | {'rope_theta': 7e4},
    },
    {
      'rope_parameters': folders.LLAMA3 | {'rope_theta': 1e6},
      'rope_scaling': None,
    },
  ],
)
def test_two_spellings_of_the_rope_are_read_as_transformers_reads_them(
  tmp_path, both
):
  found = read(tmp_path, **{'rope_scaling': folders.LLAMA3} | both)
  wanted = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters
  assert wanted['rope_type'] == 'llama3'
  assert found.rope_theta == wanted['rope_theta']
  assert found.rope_scaling[0] == wanted['factor']
