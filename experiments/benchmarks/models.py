"""The decoder that the benchmarks run: one shape, in our terms and in torch's."""

WIDTH, HEADS, KV_HEADS, HEAD_SIZE = 256, 4, 2, 64


def ours(options):
  """(model, parameters) with random weights."""
  import jax
  import jax.numpy as jnp

  from gft_jax.config import Architecture
  from gft_jax.models.transformer import Transformer

  model = Transformer(
    Architecture(
      vocab_size=options.vocab,
      width=WIDTH,
      layers=options.layers,
      heads=HEADS,
      kv_heads=KV_HEADS,
      head_size=HEAD_SIZE,
      mlp_width=4 * WIDTH,
      tied_head=True,
    )
  )
  params = jax.jit(model.init)(
    jax.random.key(0), jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32)
  )['params']
  return model, params


def torch(options):
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  torch.manual_seed(0)
  return LlamaForCausalLM(
    LlamaConfig(
      vocab_size=options.vocab,
      hidden_size=WIDTH,
      intermediate_size=4 * WIDTH,
      num_hidden_layers=options.layers,
      num_attention_heads=HEADS,
      num_key_value_heads=KV_HEADS,
      head_dim=HEAD_SIZE,
      tie_word_embeddings=True,
      max_position_embeddings=4096,
    )
  )
