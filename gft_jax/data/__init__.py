"""Prompts with their expert and teacher answers, as batches of token ids.

Takes a file, a hub's dataset or a task by name, and a tokenizer, and gives
rows that were checked, counted and tokenised once (`load`). `Dataset.batches`
gives batches without end, with a position that can be saved, and
`Dataset.first` gives fixed rows for evaluation. Never samples, never grades,
and never drops a row without its reason.

The names load on first use (PEP 562): Grain and TFDS take seconds to import.
"""

import importlib

_HOME = {
  'Batches': 'gft_jax.data.dataset',
  'Dataset': 'gft_jax.data.dataset',
  'Examples': 'gft_jax.data.dataset',
  'Statistics': 'gft_jax.data.dataset',
  'encode_prompts': 'gft_jax.data.pipeline',
  'load': 'gft_jax.data.pipeline',
  'unknown_id': 'gft_jax.data.chat',
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
  return __all__
