"""Shapes against the counts that their publishers state."""

import math

import jax
import jax.numpy as jnp
import pytest

from gft_jax.models import presets
from gft_jax.models.transformer import Transformer

# Parameters in the safetensors index of each repository on huggingface.co.
PUBLISHED = {
  'SMOLLM2_135M': 134_515_008,
  'QWEN2_5_0_5B': 494_032_768,
  'QWEN2_5_MATH_1_5B': 1_543_714_304,
  'QWEN2_5_MATH_7B': 7_615_616_512,
  'LLAMA_3_2_3B': 3_212_749_824,
  'LLAMA_3_1_8B': 8_030_261_248,
  'DEEPSEEK_MATH_7B': 6_910_365_696,
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_count_equals_publication_and_parameters(name):
  architecture = getattr(presets, name)
  one = jnp.ones((1, 1), jnp.int32)
  shapes = jax.eval_shape(
    Transformer(architecture).init, jax.random.key(0), one, one[0]
  )
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  assert presets.parameter_count(architecture) == count == PUBLISHED[name]
