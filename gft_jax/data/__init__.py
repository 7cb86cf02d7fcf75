"""Prompts with their expert and teacher answers, as batches of token ids.

The doors: `load` gives a `Dataset`, `Dataset.batches` batches without end and
with a position that can be saved, `Dataset.first` fixed rows for evaluation. They
load on first use (PEP 562), for Grain and TFDS take seconds to import.
"""

import importlib

_HOME = {
  'Batches': 'gft_jax.data.pipeline',
  'Dataset': 'gft_jax.data.pipeline',
  'Examples': 'gft_jax.data.pipeline',
  'Statistics': 'gft_jax.data.pipeline',
  'encode_prompts': 'gft_jax.data.pipeline',
  'load': 'gft_jax.data.pipeline',
  'unknown_id': 'gft_jax.data.pipeline',
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
  return __all__
