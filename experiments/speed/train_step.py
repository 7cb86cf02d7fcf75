"""One optimizer step of GFT, beside a plain torch step with transformers.

  python experiments/speed/train_step.py --prompts 2 --group 8 \\
    --prompt 256 --tokens 128 --vocab 8192

Random weights, AdamW under a global-norm clip. The torch step repeats
each prompt for every member, takes logits at all positions and differentiates
the same loss. A unit is a response token. With --mean 40 the lengths of answers
are geometric with that mean, and cut at --tokens.

With --lora-rank 16 the engine `lora` trains adapters beside frozen weights:

  python experiments/speed/train_step.py --lora-rank 16 \\
    --engines ours lora
"""

import functools
from collections.abc import Callable
from typing import Any

import harness
import models

TAU = 0.7


def lengths(options):
  """[B, G], the tokens of each answer."""
  import numpy as np

  shape = options.prompts, options.group
  if not options.mean:
    return np.full(shape, options.tokens)
  drawn = np.random.default_rng(0).geometric(1 / options.mean, shape)
  return np.minimum(drawn, options.tokens)


def ours(options, rank=0):
  import jax
  import jax.numpy as jnp
  import numpy as np

  from gft_jax.batch import SELF, GroupBatch, Prompts, Responses
  from gft_jax.config import LoraConfig, LossConfig, OptimizerConfig
  from gft_jax.models import lora, packing
  from gft_jax.run import compiler
  from gft_jax.training import objectives, train_step
  from gft_jax.training.optimizer import make_optimizer

  compiler.return_freed_memory()  # As the engine of a run does.
  model, params = models.ours(options)
  frozen = None
  if rank:
    model, frozen = model.clone(lora=LoraConfig(rank)), params
    params = lora.create(model, jax.random.key(0))
  vocabulary = model.architecture.vocab_size
  b, g, p, t = options.prompts, options.group, options.prompt, options.tokens
  rng = np.random.default_rng(0)
  length = lengths(options)
  batch = GroupBatch(
    prompts=Prompts(
      rng.integers(0, vocabulary, (b, p)), np.full(b, p), np.arange(b)
    ),
    responses=Responses(
      rng.integers(0, vocabulary, (b, g, t)),
      length,
      np.zeros((b, g, t), np.float32),
    ),
    rewards=rng.integers(0, 2, (b, g)).astype(np.float32),
    origin=np.full((b, g), SELF),
    member_mask=np.ones((b, g), bool),
  )
  batch = jax.tree.map(jnp.asarray, packing.pack(batch))
  step = jax.jit(
    train_step.make_train_step(
      model,
      objectives.OBJECTIVES['gft'],
      LossConfig(tau=TAU, chunk=options.chunk),
    ),
    donate_argnums=0,
  )
  optimizer = make_optimizer(OptimizerConfig(), 100)
  state = jax.jit(
    functools.partial(train_step.create_state, model, optimizer=optimizer)
  )(params)

  def run():
    nonlocal state
    state, metrics, _ = step(state, batch, None, frozen)
    jax.block_until_ready((state.params, metrics))
    return int(length.sum())

  return run


def torch(options):
  import torch

  model = models.torch(options)
  b, g, p, t = options.prompts, options.group, options.prompt, options.tokens
  draw = functools.partial(
    torch.randint, 0, model.config.vocab_size, device=model.device
  )
  prompts = draw((b, p)).repeat_interleave(g, dim=0)
  responses = draw((b * g, t))
  sequences = torch.cat([prompts, responses], dim=1)
  rewards = torch.randint(0, 2, (b, g), device=model.device).float()
  centred = rewards - rewards.mean(dim=1, keepdim=True)
  advantages = (centred / (rewards.std(dim=1, keepdim=True) + 1e-6)).view(-1, 1)
  length = torch.tensor(lengths(options), device=model.device).view(-1, 1)
  mask = torch.arange(t, device=model.device) < length
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

  def run():
    logits = model(sequences).logits[:, p - 1 : -1]
    logp = torch.log_softmax(logits, dim=-1)
    logp = logp.gather(-1, responses[..., None])[..., 0]
    probability = logp.detach().exp()
    coefficient = torch.where(probability > TAU, 1.0, probability)
    loss = -(coefficient * advantages * logp * mask).sum() / mask.sum()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if model.device.type == 'cuda':
      torch.cuda.synchronize()
    return int(length.sum())

  return run


def work(options):
  """Forward and twice that backward, the prompt once per group."""
  a = models.shape(options)
  b, p, length = options.prompts, options.prompt, lengths(options)
  tokens = int(length.sum())
  # The last token of an answer predicts nothing.
  flops = 2 * models.block_parameters(a) * (b * p + tokens - length.size)
  flops += 2 * a.width * a.vocab_size * tokens
  pairs = b * p * p / 2 + (length * (p + length / 2)).sum()
  flops += models.attention_flops(a, pairs)
  return tokens, [(3 * flops, 0)]


if __name__ == '__main__':
  arguments = harness.parser(
    __doc__,
    prompts=2,
    group=8,
    prompt=256,
    tokens=128,
    mean=0,
    layers=4,
    vocab=8192,
    chunk=512,
    lora_rank=0,
  )
  models.add_flags(arguments)
  options = arguments.parse_args()
  engines: dict[str, Callable[[Any], harness.Run]]
  engines = {'ours': ours, 'torch': torch}
  if options.lora_rank:
    engines['lora'] = functools.partial(ours, rank=options.lora_rank)
  harness.main(options, engines, work)
