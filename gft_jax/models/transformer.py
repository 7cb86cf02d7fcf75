"""A decoder of the Llama and Qwen2 families that shares prompts in groups.

A prompt enters once per group and becomes a `Prefix`; the G responses attend
to it and to themselves. Training (`prefill`, `respond`) and sampling
(`prefill`, `decode`) use the same prefix and the same parameters:

  prefix = model.apply({'params': params}, tokens, length, method='prefill')
  hidden = model.apply({'params': params}, prefix, responses, method='respond')

A training step may also run whole sequences, end to end in rows (`packed`).

Hidden states are after the final norm; hidden @ head is the logits, which
only `ops.logprobs` and the sampler form.
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from gft_jax.config import Architecture, LoraConfig
from gft_jax.models import attention, lora
from gft_jax.parallel import sharding

# What the backward pass finds stored; it recomputes the rest layer by layer.
# Attention's result is small, and long sequences make their scores again anyway.
REMAT_POLICIES = {
  'dots': jax.checkpoint_policies.save_only_these_names(
    'projection', 'attention'
  ),
  'full': jax.checkpoint_policies.nothing_saveable,
}


@flax.struct.dataclass
class Prefix:
  """Prompts after the model, shared by the members of each group.

  Attributes:
    keys: [L, B, P, N, K], rotated.
    values: [L, B, P, N, K].
    hidden: [B, D], final state of the last real token: it predicts response
      token 0.
    length: [B] int32.
  """

  keys: jax.Array
  values: jax.Array
  hidden: jax.Array
  length: jax.Array


@flax.struct.dataclass
class Layer:
  """A layer as decoding R rows needs it.

  Keys have their tokens last: the product with a query takes them as they are.

  Attributes:
    params: of its block.
    prompt: keys [B, N, K, P], rotated, and values [B, N, P, K] of the prefix.
    own: keys [R, N, K, T], rotated, and values [R, N, T, K] of decoded tokens.
  """

  params: Any
  prompt: tuple[jax.Array, jax.Array]
  own: tuple[jax.Array, jax.Array]


@flax.struct.dataclass
class Cache:
  """What decoding R rows needs besides the prefix.

  Attributes:
    layers: one after the other.
    rotation: cosine and sine [P + T, K/2] of every position.
    group_size: G.
  """

  layers: tuple[Layer, ...]
  rotation: tuple[jax.Array, jax.Array]
  group_size: int = flax.struct.field(pytree_node=False)


def for_compute(params: Any, dtype: str) -> Any:
  """Parameters as a model of that dtype reads them, where that is narrower.

  Only the scales of norms are read wider than that, so they stay.
  """

  def one(path, x):
    narrower = jnp.dtype(dtype).itemsize < x.dtype.itemsize
    return x.astype(dtype) if narrower and path[-1].key != 'scale' else x

  return jax.tree_util.tree_map_with_path(one, params)


class Block(nn.Module):
  """Attention and gated MLP, each normed before and added to the stream."""

  architecture: Architecture
  dtype: str
  param_dtype: str
  lora: LoraConfig

  def setup(self):
    a = self.architecture
    # Two outputs per layer add to the stream; scaled so, its variance at
    # initialisation does not grow with depth (GPT-2).
    to_stream = nn.initializers.variance_scaling(
      1 / (2 * a.layers), 'fan_in', 'normal'
    )
    self.attention_norm = self._norm()
    heads, kv_heads = (a.heads, a.head_size), (a.kv_heads, a.head_size)
    self.query = self._linear('query', heads, use_bias=a.qkv_bias)
    self.key = self._linear('key', kv_heads, use_bias=a.qkv_bias)
    self.value = self._linear('value', kv_heads, use_bias=a.qkv_bias)
    self.output = self._linear(
      'output', a.width, axis=(-2, -1), kernel_init=to_stream
    )
    self.mlp_norm = self._norm()
    self.gate = self._linear('gate', a.mlp_width)
    self.up = self._linear('up', a.mlp_width)
    self.down = self._linear('down', a.width, kernel_init=to_stream)

  def prompt(self, x, rotation, segments):
    query, key, value = self._project(x, rotation)
    out = attention.attend_prompt(query, key, value, segments)
    return self._finish(x, out), (key, value)

  def response(self, x, prefix, rotation, length):
    query, *own = self._project(x, rotation)
    out = attention.attend_response(query, own, prefix, length)
    return self._finish(x, out), None

  def step(self, x, own, prompt, rotation, length, slots, step, group_size):
    query, key, value = self._project(x, rotation)
    write = jax.lax.dynamic_update_slice
    own = (
      write(own[0], key[..., None], (0, 0, 0, step)),
      write(own[1], value[:, :, None], (0, 0, step, 0)),
    )
    out = attention.attend_step(
      query, own, prompt, length, slots, step, group_size=group_size
    )
    return self._finish(x, out), own

  # Dense layers see [tokens, ...]: with several token axes XLA's CPU backend
  # transposes each operand of a weight's gradient (2.4x the time, measured).

  def _project(self, x, rotation):
    y = self.attention_norm(x).reshape(-1, x.shape[-1])
    query, key, value = (
      z.reshape(*x.shape[:-1], *z.shape[1:])
      for z in (self.query(y), self.key(y), self.value(y))
    )
    rotate = attention.rotate
    return rotate(query, rotation), rotate(key, rotation), value

  def _finish(self, x, out):
    flat = x.reshape(-1, x.shape[-1])
    flat = flat + self.output(out.reshape(-1, *out.shape[-2:]))
    y = self.mlp_norm(flat)
    flat = flat + self.down(nn.silu(self.gate(y)) * self.up(y))
    return sharding.split_prompts(flat.reshape(x.shape))

  def _linear(self, name, features, **settings):
    settings = {
      'kernel_init': nn.initializers.variance_scaling(1, 'fan_in', 'normal'),
      'use_bias': False,
    } | settings
    adapted = name in self.lora.targets
    return lora.Linear(
      features,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      promote_dtype=functools.partial(_promote, f'{name}/kernel'),
      rank=self.lora.rank if adapted else 0,
      alpha=self.lora.alpha,
      **settings,
    )

  def _norm(self):
    return nn.RMSNorm(
      self.architecture.norm_epsilon,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )


def _promote(name, inputs, kernel, *bias, dtype):
  inputs, kernel, *bias = promote_dtype(inputs, kernel, *bias, dtype=dtype)
  return inputs, sharding.whole_parameter(kernel, name), *bias


class Transformer(nn.Module):
  """The policy.

  Attributes:
    architecture: the shape.
    dtype: of the computation; norms, rotations, softmax and log-sum-exp are
      float32 whatever it is.
    param_dtype: of the parameters.
    remat: 'none', 'dots' (keeps matrix products with parameters and the results
      of attention) or 'full' (keeps the input of each layer). 'dots' is also
      the fastest where memory is slow: on CPUs by 15 % (measured).
    lora: which projections have adapters, that are then parameters too.
  """

  architecture: Architecture
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: str = 'dots'
  lora: LoraConfig = LoraConfig()

  def setup(self):
    a = self.architecture
    # Bare parameters, so that rows are gathered before they are cast.
    small = nn.initializers.normal(0.02)
    self.embedding = self.param(
      'embedding', small, (a.vocab_size, a.width), self.param_dtype
    )
    if not a.tied_head:
      self.unembedding = self.param(
        'head', small, (a.width, a.vocab_size), self.param_dtype
      )
    self.final_norm = nn.RMSNorm(
      a.norm_epsilon, dtype=self.dtype, param_dtype=self.param_dtype
    )
    block = Block
    if self.remat != 'none':
      block = nn.remat(
        Block,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=False,  # The loop keeps the two passes apart.
        methods=('prompt', 'response'),
      )
    over_layers = {
      'variable_axes': {'params': 0},
      'split_rngs': {'params': True},
      'length': a.layers,
    }
    same = nn.broadcast
    self.blocks = nn.scan(
      block,
      methods={
        'prompt': over_layers | {'in_axes': (same, same)},
        'response': over_layers | {'in_axes': (0, same, same)},
      },
    )(*self._block_settings())

  def __call__(self, tokens: jax.Array, length: jax.Array) -> Prefix:
    """`prefill`, which touches every parameter: `model.init` calls this."""
    return self.prefill(tokens, length)

  def prefill(self, tokens: jax.Array, length: jax.Array) -> Prefix:
    """Runs the prompts once.

    Args:
      tokens: [B, P] int32, padded on the right.
      length: [B] int32, at least 1.
    """
    positions = jnp.arange(tokens.shape[1])[None]
    x, (keys, values) = self.blocks.prompt(
      self._embed(tokens), self._rotation(positions), jnp.zeros_like(tokens)
    )
    last = jnp.take_along_axis(x, (length - 1)[:, None, None], axis=1)[:, 0]
    return Prefix(keys, values, self.final_norm(last), length)

  def packed(
    self, tokens: jax.Array, positions: jax.Array, segments: jax.Array
  ) -> jax.Array:
    """Runs sequences that stand end to end in rows; see batch.Rows.

    Args:
      tokens: [R, C] int32.
      positions: [R, C] int32.
      segments: [R, C] int32; a token sees those before it in its segment.

    Returns:
      [R, C, D], the states that predict the next tokens.
    """
    x, _ = self.blocks.prompt(
      self._embed(tokens), self._rotation(positions), segments
    )
    return self.final_norm(x)

  def respond(self, prefix: Prefix, tokens: jax.Array) -> jax.Array:
    """Runs the responses of each group against its shared prompt.

    Args:
      prefix: of B prompts.
      tokens: [B, G, T] int32, padded on the right.

    Returns:
      [B, G, T, D]; entry t is the state that predicts response token t. The
      first is the prompt's, so the last token is never run.
    """
    batch, group, count = tokens.shape
    first = jnp.broadcast_to(
      prefix.hidden[:, None, None],
      (batch, group, 1, prefix.hidden.shape[-1]),
    )
    if count == 1:
      return first
    positions = jnp.arange(count - 1)[None, None] + prefix.length[:, None, None]
    x, _ = self.blocks.response(
      self._embed(tokens[..., :-1]),
      (prefix.keys, prefix.values),
      self._rotation(positions),
      prefix.length,
    )
    return jnp.concatenate([first, self.final_norm(x)], axis=2)

  def empty_cache(
    self, prefix: Prefix, group_size: int, max_tokens: int
  ) -> Cache:
    """Room for G responses of T tokens to each prompt: B G rows.

    Each layer is cut out of the stacked ones and cast here, once. In the decode
    loop that would be a copy of all parameters at every token: a model of 30
    layers decodes three times as fast without it on a CPU (measured). So the
    cache holds the parameters of all layers a second time.
    """
    _, batch, _, kv_heads, head_size = prefix.keys.shape
    rows, dtype = batch * group_size, prefix.keys.dtype
    stacked = self.blocks.variables['params'], prefix.keys, prefix.values

    def layer(i):
      params, keys, values = jax.tree.map(lambda x: x[i], stacked)
      prompt = keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2)
      own = (
        jnp.zeros((rows, kv_heads, head_size, max_tokens), dtype),
        jnp.zeros((rows, kv_heads, max_tokens, head_size), dtype),
      )
      return Layer(for_compute(params, self.dtype), prompt, own)

    layers = tuple(layer(i) for i in range(self.architecture.layers))
    # XLA would make them again in each fusion of the loop that reads them, for
    # every head of every layer: a tenth of a rollout on a CPU (measured).
    rotation = self._rotation(jnp.arange(prefix.keys.shape[2] + max_tokens))
    return Cache(layers, rotation, group_size)

  def keep_rows(self, cache: Cache, rows: jax.Array) -> Cache:
    """The cache of the rows [R'] alone, in their order."""
    kept = tuple(
      layer.replace(own=tuple(x[rows] for x in layer.own))
      for layer in cache.layers
    )
    return cache.replace(layers=kept)

  def decode(
    self,
    prefix: Prefix,
    cache: Cache,
    tokens: jax.Array,
    slots: jax.Array,
    step: jax.Array,
  ) -> tuple[jax.Array, Cache]:
    """Runs one token of every row.

    A Python loop over the layers, see `empty_cache`.

    Args:
      prefix: of B prompts.
      cache: of `empty_cache` with these parameters; holds tokens 0 to step - 1.
      tokens: [R] int32, response token `step` of every row.
      slots: [R] int32, the response b G + g that each row is; all of them in
        order where R = B G.
      step: [] int32, under the T of the cache.

    Returns:
      ([R, D], the state that predicts token step + 1; the cache with this
      token).
    """
    positions = jnp.take(prefix.length, slots // cache.group_size) + step
    rotation = jax.tree.map(lambda x: x[positions], cache.rotation)
    block = Block(*self._block_settings(), parent=None)

    x, layers = self._embed(tokens), []
    for layer in cache.layers:
      x, own = block.apply(
        {'params': layer.params},
        x,
        layer.own,
        layer.prompt,
        rotation,
        prefix.length,
        slots,
        step,
        cache.group_size,
        method='step',
      )
      layers.append(layer.replace(own=own))
    return self.final_norm(x), cache.replace(layers=tuple(layers))

  def head(self) -> jax.Array:
    """[D, V] in the compute dtype; hidden @ head is the logits."""
    tied = self.architecture.tied_head
    matrix = self.embedding.T if tied else self.unembedding
    return matrix.astype(self.dtype)

  def _block_settings(self):
    return self.architecture, self.dtype, self.param_dtype, self.lora

  def _embed(self, tokens):
    # An id outside the vocabulary gives NaN; indexing would give the last row.
    x = jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)
    return sharding.split_prompts(x)

  def _rotation(self, positions):
    return attention.rotation(
      positions,
      head_size=self.architecture.head_size,
      theta=self.architecture.rope_theta,
      scaling=self.architecture.rope_scaling,
    )
