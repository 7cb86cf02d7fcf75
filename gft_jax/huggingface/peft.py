"""Adapters as a folder that Hugging Face's PEFT loads."""

import json
import pathlib

import numpy as np
from flax import traverse_util

from gft_jax import huggingface
from gft_jax.config import user_path
from gft_jax.huggingface import tensor_files
from gft_jax.models.transformer import Transformer
from gft_jax.types import Params


def save(
  directory: str | pathlib.Path,
  model: Transformer,
  adapters: Params,
  *,
  base: str,
) -> None:
  """Writes a folder for `peft.PeftModel.from_pretrained`.

  adapter_config.json comes last: a folder that has it is complete.

  Args:
    directory: is made.
    model: its `lora` says what the adapters are.
    adapters: the trained tree of models.lora, addressable from this process.
    base: where PEFT finds the frozen weights.
  """
  directory = user_path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  rank = model.lora.rank
  tensors, modules = {}, set()
  for (*path, kind), leaf in traverse_util.flatten_dict(adapters).items():
    kernel = '/'.join([*path, 'kernel'])
    name = huggingface.tensor_name(model.architecture, kernel)
    name = name.removesuffix('.weight')  # ...layers.{}.self_attn.q_proj
    modules.add(name.rpartition('.')[2])
    # torch stores a matrix as [out, in]: A as [r, in], B as [out, r].
    suffix, shape = {
      'lora_a': ('lora_A', (-1, rank)),
      'lora_b': ('lora_B', (rank, -1)),
    }[kind]
    for i, layer in enumerate(np.asarray(leaf)):
      tensors[f'base_model.model.{name.format(i)}.{suffix}.weight'] = (
        np.ascontiguousarray(layer.reshape(shape).T)
      )
  tensor_files.save(tensors, directory / 'adapter_model.safetensors')
  config = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': rank,
    'lora_alpha': model.lora.alpha,
    'lora_dropout': 0.0,
    'target_modules': sorted(modules),
    'bias': 'none',
    'inference_mode': True,
  }
  text = json.dumps(config, indent=2) + '\n'
  (directory / 'adapter_config.json').write_text(text)
