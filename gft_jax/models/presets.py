"""Shapes of the public models that the paper and this project train.

Each is the config.json of huggingface.co/<name>, read in this project's names;
`huggingface.load` of that folder gives the same value.
"""

from gft_jax.config import Architecture

# HuggingFaceTB/SmolLM2-135M, Apache-2.0.
SMOLLM2_135M = Architecture(
  vocab_size=49152,
  width=576,
  layers=30,
  heads=9,
  kv_heads=3,
  head_size=64,
  mlp_width=1536,
  rope_theta=100000.0,
  norm_epsilon=1e-5,
  tied_head=True,
  max_positions=8192,
)

# Qwen/Qwen2.5-0.5B, Apache-2.0.
QWEN2_5_0_5B = Architecture(
  vocab_size=151936,
  width=896,
  layers=24,
  heads=14,
  kv_heads=2,
  head_size=64,
  mlp_width=4864,
  rope_theta=1000000.0,
  norm_epsilon=1e-6,
  qkv_bias=True,
  tied_head=True,
  max_positions=32768,
)

# Qwen/Qwen2.5-Math-1.5B, Apache-2.0.
QWEN2_5_MATH_1_5B = Architecture(
  vocab_size=151936,
  width=1536,
  layers=28,
  heads=12,
  kv_heads=2,
  head_size=128,
  mlp_width=8960,
  rope_theta=10000.0,
  norm_epsilon=1e-6,
  qkv_bias=True,
  tied_head=True,
  max_positions=4096,
)

# Qwen/Qwen2.5-Math-7B, Apache-2.0.
QWEN2_5_MATH_7B = Architecture(
  vocab_size=152064,
  width=3584,
  layers=28,
  heads=28,
  kv_heads=4,
  head_size=128,
  mlp_width=18944,
  rope_theta=10000.0,
  norm_epsilon=1e-6,
  qkv_bias=True,
  max_positions=4096,
)

# meta-llama/Llama-3.2-3B, Llama 3.2 community licence.
LLAMA_3_2_3B = Architecture(
  vocab_size=128256,
  width=3072,
  layers=28,
  heads=24,
  kv_heads=8,
  head_size=128,
  mlp_width=8192,
  rope_theta=500000.0,
  rope_scaling=(32.0, 1.0, 4.0, 8192),
  norm_epsilon=1e-5,
  tied_head=True,
  max_positions=131072,
)

# meta-llama/Llama-3.1-8B, Llama 3.1 community licence.
LLAMA_3_1_8B = Architecture(
  vocab_size=128256,
  width=4096,
  layers=32,
  heads=32,
  kv_heads=8,
  head_size=128,
  mlp_width=14336,
  rope_theta=500000.0,
  rope_scaling=(8.0, 1.0, 4.0, 8192),
  norm_epsilon=1e-5,
  max_positions=131072,
)

# deepseek-ai/deepseek-math-7b-base, DeepSeek licence.
DEEPSEEK_MATH_7B = Architecture(
  vocab_size=102400,
  width=4096,
  layers=30,
  heads=32,
  kv_heads=32,
  head_size=128,
  mlp_width=11008,
  rope_theta=10000.0,
  norm_epsilon=1e-6,
  max_positions=4096,
)


# By the name on the hub that the comments above give.
HUB_IDS = {
  'HuggingFaceTB/SmolLM2-135M': SMOLLM2_135M,
  'Qwen/Qwen2.5-0.5B': QWEN2_5_0_5B,
  'Qwen/Qwen2.5-Math-1.5B': QWEN2_5_MATH_1_5B,
  'Qwen/Qwen2.5-Math-7B': QWEN2_5_MATH_7B,
  'meta-llama/Llama-3.2-3B': LLAMA_3_2_3B,
  'meta-llama/Llama-3.2-3B-Instruct': LLAMA_3_2_3B,
  'meta-llama/Llama-3.1-8B': LLAMA_3_1_8B,
  'deepseek-ai/deepseek-math-7b-base': DEEPSEEK_MATH_7B,
  'deepseek-ai/deepseek-math-7b-instruct': DEEPSEEK_MATH_7B,
}


def parameter_count(architecture: Architecture) -> int:
  """Parameters of a `Transformer`; a tied head counts once."""
  a = architecture
  projections = a.heads + 2 * a.kv_heads  # Heads of q, k and v together.
  attention = a.head_size * (a.width * (projections + a.heads))
  biases = a.head_size * projections * a.qkv_bias
  mlp = 3 * a.width * a.mlp_width
  layer = attention + biases + mlp + 2 * a.width
  tables = 1 if a.tied_head else 2
  return a.layers * layer + a.width + tables * a.vocab_size * a.width
