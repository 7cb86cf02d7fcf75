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
from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Float, Int

from gft_jax.config import Architecture, LoraConfig
from gft_jax.models import attention, lora
from gft_jax.parallel import sharding
from gft_jax.types import Array, Params

# What the backward pass finds stored; it recomputes the rest layer by layer.
# Attention's result is small, and long sequences make their scores again anyway.
REMAT_POLICIES = {
  'dots': jax.checkpoint_policies.save_only_these_names(
    'projection', 'attention'
  ),
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Prefix(flax.struct.PyTreeNode):
  """Prompts after the model, shared by the members of each group.

  Attributes:
    keys: rotated.
    values: of the keys.
    hidden: final state of the last real token: it predicts response token 0.
    length: int32, real tokens.
  """

  keys: Float[Array, 'L B P N K']
  values: Float[Array, 'L B P N K']
  hidden: Float[Array, 'B D']
  length: Int[Array, ' B']


class Layer(flax.struct.PyTreeNode):
  """A layer as decoding R rows needs it.

  Keys have their tokens last: the product with a query takes them as they are.

  Attributes:
    params: of its block.
    prompt: keys, rotated, and values of the prefix.
    own: keys, rotated, and values of decoded tokens.
  """

  params: Params
  prompt: tuple[Float[Array, 'B N K P'], Float[Array, 'B N P K']]
  own: tuple[Float[Array, 'R N K T'], Float[Array, 'R N T K']]


class Cache(flax.struct.PyTreeNode):
  """What decoding R rows needs besides the prefix.

  Attributes:
    layers: one after the other.
    rotation: cosine and sine of every position.
    group_size: G.
  """

  layers: tuple[Layer, ...]
  rotation: tuple[Float[Array, 'P+T K//2'], Float[Array, 'P+T K//2']]
  group_size: int = flax.struct.field(pytree_node=False)


def for_compute(params: Params, dtype: str) -> Params:
  """Parameters as a model of that dtype reads them, where that is narrower.

  Only the scales of norms are read wider than that, so they stay.
  """

  def one(path, x):
    narrower = jnp.dtype(dtype).itemsize < x.dtype.itemsize
    return x.astype(dtype) if narrower and path[-1].key != 'scale' else x

  return jax.tree_util.tree_map_with_path(one, params)


# Cosine and sine of the rotary angles; the keys and values of one layer.
Rotation = tuple[Float[Array, '*tokens angles'], Float[Array, '*tokens angles']]
KeysValues = tuple[Float[Array, '...'], Float[Array, '...']]

FAN_IN = nn.initializers.variance_scaling(1, 'fan_in', 'normal')


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

  def prompt(
    self,
    x: Float[Array, 'B P D'],
    rotation: Rotation,
    segments: Int[Array, 'B P'],
  ) -> tuple[Float[Array, 'B P D'], KeysValues]:
    """A layer on prompts; also their keys and values."""
    query, key, value = self._project(x, rotation)
    out = attention.attend_prompt(query, key, value, segments)
    return self._finish(x, out), (key, value)

  def response(
    self,
    x: Float[Array, 'B G T D'],
    prefix: KeysValues,
    rotation: Rotation,
    length: Int[Array, ' B'],
  ) -> tuple[Float[Array, 'B G T D'], None]:
    """A layer on responses, whose prompts are `prefix`."""
    query, key, value = self._project(x, rotation)
    out = attention.attend_response(query, (key, value), prefix, length)
    return self._finish(x, out), None

  def step(
    self,
    x: Float[Array, 'R D'],
    layer: Layer,
    rotation: Rotation,
    length: Int[Array, ' B'],
    slots: Int[Array, ' R'],
    step: Int[Array, ''] | int,
    group_size: int,
  ) -> tuple[Float[Array, 'R D'], KeysValues]:
    """A layer on one token of each row; also the cache with that token."""
    own, prompt = layer.own, layer.prompt
    query, key, value = self._project(x, rotation)
    write = jax.lax.dynamic_update_slice_in_dim
    own = (
      write(own[0], key[..., None], step, axis=3),
      write(own[1], value[:, :, None], step, axis=2),
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

  def _linear(
    self,
    name: str,
    features: int | Sequence[int],
    *,
    axis: int | Sequence[int] = -1,
    use_bias: bool = False,
    kernel_init: nn.initializers.Initializer = FAN_IN,
  ) -> lora.Linear:
    adapted = name in self.lora.targets
    return lora.Linear(
      features,
      axis=axis,
      use_bias=use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=kernel_init,
      promote_dtype=functools.partial(_promote, f'{name}/kernel'),
      rank=self.lora.rank if adapted else 0,
      alpha=self.lora.alpha,
    )

  def _norm(self):
    return nn.RMSNorm(
      self.architecture.norm_epsilon,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )


def _promote(
  name: str,
  *operands: jax.Array | None,
  dtype: str | None = None,
  inexact: bool = True,
) -> list[jax.Array | None]:
  """Flax's promote_dtype of inputs, kernel, bias; gathers the kernel."""
  inputs, kernel, *bias = promote_dtype(*operands, dtype=dtype, inexact=inexact)
  return [inputs, sharding.whole_parameter(kernel, name), *bias]


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

  def __call__(
    self, tokens: Int[Array, 'B P'], length: Int[Array, ' B']
  ) -> Prefix:
    """`prefill`, which touches every parameter: `model.init` calls this."""
    return self.prefill(tokens, length)

  def prefill(
    self, tokens: Int[Array, 'B P'], length: Int[Array, ' B']
  ) -> Prefix:
    """Runs the prompts once.

    Args:
      tokens: int32, padded on the right.
      length: int32, at least 1.
    """
    positions = jnp.arange(tokens.shape[1])[None]
    x, (keys, values) = self.blocks.prompt(
      self._embed(tokens), self._rotation(positions), jnp.zeros_like(tokens)
    )
    last = jnp.take_along_axis(x, (length - 1)[:, None, None], axis=1)[:, 0]
    return Prefix(keys, values, self.final_norm(last), length)

  def packed(
    self,
    tokens: Int[Array, 'R C'],
    positions: Int[Array, 'R C'],
    segments: Int[Array, 'R C'],
  ) -> Float[Array, 'R C D']:
    """Runs sequences that stand end to end in rows; see batch.Rows.

    Args:
      tokens: int32.
      positions: int32.
      segments: int32; a token sees those before it in its segment.

    Returns:
      The states that predict the next tokens.
    """
    x, _ = self.blocks.prompt(
      self._embed(tokens), self._rotation(positions), segments
    )
    return self.final_norm(x)

  def respond(
    self, prefix: Prefix, tokens: Int[Array, 'B G T']
  ) -> Float[Array, 'B G T D']:
    """Runs the responses of each group against its shared prompt.

    Args:
      prefix: of B prompts.
      tokens: int32, padded on the right.

    Returns:
      Entry t is the state that predicts response token t. The first is the
      prompt's, so the last token is never run.
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

  def keep_rows(self, cache: Cache, rows: Int[Array, ' kept']) -> Cache:
    """The cache of these rows alone, in their order."""
    kept = tuple(
      layer.replace(own=tuple(x[rows] for x in layer.own))
      for layer in cache.layers
    )
    return cache.replace(layers=kept)

  def decode(
    self,
    prefix: Prefix,
    cache: Cache,
    tokens: Int[Array, ' R'],
    slots: Int[Array, ' R'],
    step: Int[Array, ''] | int,
  ) -> tuple[Float[Array, 'R D'], Cache]:
    """Runs one token of every row.

    A Python loop over the layers, see `empty_cache`.

    Args:
      prefix: of B prompts.
      cache: of `empty_cache` with these parameters; holds tokens 0 to step - 1.
      tokens: int32, response token `step` of every row.
      slots: int32, the response b G + g that each row is; all of them in order
        where R = B G.
      step: int32, under the T of the cache.

    Returns:
      (The state that predicts token step + 1; the cache with this token).
    """
    positions = jnp.take(prefix.length, slots // cache.group_size) + step
    rotation = jax.tree.map(lambda x: x[positions], cache.rotation)
    block = Block(*self._block_settings(), parent=None)

    x, layers = self._embed(tokens), []
    for layer in cache.layers:
      x, own = block.apply(
        {'params': layer.params},
        x,
        layer,
        rotation,
        prefix.length,
        slots,
        step,
        cache.group_size,
        method='step',
      )
      layers.append(layer.replace(own=own))
    return self.final_norm(x), cache.replace(layers=tuple(layers))

  def head(self) -> Float[Array, 'D V']:
    """In the compute dtype; hidden @ head is the logits."""
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
