"""The decoder that the benchmarks run: one shape, in our terms and in torch's."""

import argparse

from gft_jax.config import Architecture
from gft_jax.models import presets


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--preset',
    choices=[
      name
      for name, value in vars(presets).items()
      if isinstance(value, Architecture)
    ],
    help='a published shape instead of the small one',
  )
  parser.add_argument(
    '--dtype', default='float32', choices=('float32', 'bfloat16')
  )


def shape(options) -> Architecture:
  if options.preset:
    return getattr(presets, options.preset)
  return Architecture(
    vocab_size=options.vocab,
    width=256,
    layers=options.layers,
    heads=4,
    kv_heads=2,
    head_size=64,
    mlp_width=1024,
    tied_head=True,
    max_positions=4096,
  )


def block_parameters(a: Architecture) -> int:
  """Of all matrices in the layers."""
  heads = 2 * a.heads + 2 * a.kv_heads
  return a.layers * a.width * (heads * a.head_size + 3 * a.mlp_width)


def attention_flops(a: Architecture, pairs: float) -> float:
  """Of both products, forward, for pairs of a query and a key it sees."""
  return 4 * a.layers * a.heads * a.head_size * pairs


def ours(options):
  """(model, parameters) with random weights."""
  import jax
  import jax.numpy as jnp

  from gft_jax.models.transformer import Transformer

  model = Transformer(shape(options), options.dtype, options.dtype)
  params = jax.jit(model.init)(
    jax.random.key(0), jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32)
  )['params']
  return model, params


def torch(options):
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  a = shape(options)
  torch.manual_seed(0)
  model = LlamaForCausalLM(
    LlamaConfig(
      vocab_size=a.vocab_size,
      hidden_size=a.width,
      intermediate_size=a.mlp_width,
      num_hidden_layers=a.layers,
      num_attention_heads=a.heads,
      num_key_value_heads=a.kv_heads,
      head_dim=a.head_size,
      tie_word_embeddings=a.tied_head,
      max_position_embeddings=a.max_positions,
    )
  )
  place = 'cuda' if torch.cuda.is_available() else 'cpu'
  # The `to` of transformers hides from type checkers that it is a method.
  torch.nn.Module.to(model, place, getattr(torch, options.dtype))
  return model
