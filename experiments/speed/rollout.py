"""Rollouts: useful tokens a second, beside Tunix and transformers.

  python experiments/speed/rollout.py --prompts 4 --group 8 --prompt 512 \\
    --tokens 128 --stops 0 --engines ours tunix transformers \\
    --python tunix=TUNIX_VENV/bin/python

Random weights of one shape, drawn with the same standard deviation (float32 for
Tunix always); sampling at temperature 1 over the whole vocabulary. --stops of the token ids end
a response, so its length is geometric with mean vocab / stops; a token after
the end is not useful.
"""

import harness
import models


def ours(options):
  import jax
  import jax.numpy as jnp

  from gft_jax import programs
  from gft_jax.batch import Prompts
  from gft_jax.rollout import Sampling
  from gft_jax.run import compiler

  model, params = models.ours(options)
  vocabulary = model.architecture.vocab_size
  shape = (options.prompts, options.prompt)
  prompts = Prompts(
    jax.random.randint(jax.random.key(1), shape, 0, vocabulary),
    jnp.full(options.prompts, options.prompt),
    jnp.arange(options.prompts),
  )
  count = 0

  compiler.return_freed_memory()  # As the engine of a run does.

  def run():
    nonlocal count
    count += 1
    responses = programs.sample(
      model,
      params,
      prompts,
      jax.random.key(count),
      group_size=options.group,
      max_tokens=options.tokens,
      sampling=Sampling(stop_ids=tuple(range(1, 1 + options.stops))),
    )
    return int(responses.length.sum())

  return run


def tunix(options):
  import numpy as np
  from flax import nnx
  from tunix.generate import sampler as tunix_sampler
  from tunix.models.llama3 import model as llama

  a = models.shape(options)
  config = llama.ModelConfig(
    num_layers=a.layers,
    vocab_size=a.vocab_size,
    embed_dim=a.width,
    hidden_dim=a.mlp_width,
    num_heads=a.heads,
    head_dim=a.head_size,
    num_kv_heads=a.kv_heads,
    rope_theta=10000,
    norm_eps=1e-5,
    weight_tying=a.tied_head,
  )
  model = llama.Llama3(config, rngs=nnx.Rngs(0))
  _draw_alike(model, a)

  class Numbers:
    """A tokenizer of numbers; 0 is the padding and no token."""

    def encode(self, text, **kwargs):
      return [int(number) for number in text.split()]

    def decode(self, ids, **kwargs):
      return ''

    def bos_id(self):
      return None

    def eos_id(self):
      return a.vocab_size

    def pad_id(self):
      return 0

    def dedup_bos_ids(self, ids):
      return ids

  length = options.prompt + options.tokens
  sampler = tunix_sampler.Sampler(
    model,
    Numbers(),
    tunix_sampler.CacheConfig(
      cache_size=length,
      num_layers=a.layers,
      num_kv_heads=a.kv_heads,
      head_dim=a.head_size,
    ),
  )
  rng = np.random.default_rng(1)
  texts = [
    ' '.join(map(str, rng.integers(1, a.vocab_size, options.prompt)))
    for _ in range(options.prompts)
  ]
  texts = [text for text in texts for _ in range(options.group)]
  stops = list(range(1, 1 + options.stops)) or [a.vocab_size]
  count = 0

  def run():
    nonlocal count
    count += 1
    output = sampler(
      texts,
      max_generation_steps=options.tokens,
      max_prompt_length=options.prompt,
      temperature=1.0,
      top_p=1.0,
      eos_tokens=stops,
      seed=count,
    )
    # Its answers are without their stop token; ours count it.
    lengths = [min(len(t) + 1, options.tokens) for t in output.tokens]
    return sum(lengths)

  return run


def _draw_alike(model, a):
  """Our standard deviations: 0.02 in the embedding, 1/√fan-in elsewhere."""
  import jax
  import jax.numpy as jnp
  from flax import nnx

  state = nnx.state(model)
  leaves, structure = jax.tree.flatten(state)
  keys = jax.random.split(jax.random.key(0), len(leaves))

  def draw(key, leaf):
    if leaf.ndim == 1:
      return jnp.ones(leaf.shape, jnp.float32)
    scale = 0.02 if a.vocab_size in leaf.shape else a.width**-0.5
    return scale * jax.random.normal(key, leaf.shape, jnp.float32)

  leaves = [draw(k, x) for k, x in zip(keys, leaves)]
  nnx.update(model, jax.tree.unflatten(structure, leaves))


def transformers(options):
  import torch

  model = models.torch(options).eval()
  shape = (options.prompts, options.prompt)
  prompts = torch.randint(
    1, model.config.vocab_size, shape, device=model.device
  )
  prompts = prompts.repeat_interleave(options.group, dim=0)
  stops = list(range(1, 1 + options.stops)) or None

  def run():
    with torch.no_grad():
      # transformers asks for a plain attribute, and `dtype` is a property.
      output = model.generate(  # pyrefly: ignore[bad-argument-type]
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=options.tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=stops,
        pad_token_id=0,
      )[:, options.prompt :]
    if not stops:
      return output.numel()
    stopped = torch.isin(
      output, torch.tensor(stops, device=output.device)
    ).int()
    after = (stopped.cumsum(dim=1) - stopped) > 0
    return int((~after).sum())

  return run


def work(options):
  """The prompt once per group; then each step reads weights and keys once.

  The first token comes with the prompt. Nothing is known where answers stop.
  """
  if options.stops:
    return 1, []
  a = models.shape(options)
  b, p, t = options.prompts, options.prompt, options.tokens
  rows = b * options.group
  size = 4 if options.dtype == 'float32' else 2
  blocks, head = models.block_parameters(a), a.width * a.vocab_size
  keys = 2 * a.layers * a.kv_heads * a.head_size
  prefill = 2 * blocks * b * p + models.attention_flops(a, b * p * p / 2)
  phases = [(prefill, size * blocks)]
  for step in range(t - 1):
    flops = 2 * rows * (blocks + head)
    flops += models.attention_flops(a, rows * (p + step))
    read = size * (blocks + head + keys * (b * p + rows * step))
    phases.append((flops, read))
  return rows * t, phases


if __name__ == '__main__':
  arguments = harness.parser(
    __doc__,
    prompts=4,
    group=8,
    prompt=512,
    tokens=128,
    layers=4,
    vocab=8192,
    stops=0,
  )
  models.add_flags(arguments)
  harness.main(
    arguments.parse_args(),
    {'ours': ours, 'tunix': tunix, 'transformers': transformers},
    work,
  )
