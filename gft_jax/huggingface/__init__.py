"""Hugging Face folders in and out: the one room that knows their names.

Takes a folder or a hub id and gives (model, params, tokenizer); takes those and
gives a folder that transformers loads, with the same logits. Never runs code
from a folder.
"""

from gft_jax.huggingface.folder import (
  load,
  load_reward_model,
  save,
  tensor_name,
)
from gft_jax.huggingface.tokenizer import end_ids, load_tokenizer, stop_ids

__all__ = [
  'end_ids',
  'load',
  'load_reward_model',
  'load_tokenizer',
  'save',
  'stop_ids',
  'tensor_name',
]
