"""The log-probability head, forward and backward, beside the dense one.

  python experiments/speed/logprobs.py --tokens 2048 --width 512 \\
    --vocab 151936

`ours` makes the gradient in the forward pass (fused_token_loss), `chunked`
makes the logits again in the backward pass (target_logprobs), `dense` holds
all logits and lets jax differentiate. float32. A unit is a token.
"""

import harness


def _arrays(options):
  # By numpy: jax.random's intermediate arrays would be the peak of the process.
  import jax
  import numpy as np

  rng = np.random.default_rng(0)
  shape = (options.tokens, options.width)
  hidden = rng.standard_normal(shape, np.float32)
  head = rng.standard_normal((options.width, options.vocab), np.float32)
  head *= 0.02
  targets = rng.integers(0, options.vocab, options.tokens, np.int32)
  return jax.device_put((hidden, head, targets))


def _runner(options, loss):
  import jax

  hidden, head, targets = _arrays(options)
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))

  def run():
    jax.block_until_ready(gradient(hidden, head, targets))
    return options.tokens

  return run


def ours(options):
  from gft_jax.ops.logprobs import fused_token_loss

  def loss(hidden, head, targets):
    return fused_token_loss(
      hidden, head, targets, lambda l, e, _: -l, (), chunk=options.chunk
    )[0]

  return _runner(options, loss)


def chunked(options):
  from gft_jax.ops.logprobs import target_logprobs

  def loss(hidden, head, targets):
    return -target_logprobs(hidden, head, targets, chunk=options.chunk)[0].sum()

  return _runner(options, loss)


def dense(options):
  import jax
  import jax.numpy as jnp

  def loss(hidden, head, targets):
    logp = jax.nn.log_softmax(hidden @ head)
    return -jnp.take_along_axis(logp, targets[:, None], axis=-1).sum()

  return _runner(options, loss)


def work(options):
  """Logits and both gradients; the head read twice, its gradient written."""
  size = options.width * options.vocab
  return options.tokens, [(3 * 2 * options.tokens * size, 3 * 4 * size)]


if __name__ == '__main__':
  arguments = harness.parser(
    __doc__, tokens=2048, width=512, vocab=151_936, chunk=384
  )
  harness.main(
    arguments.parse_args(),
    {'ours': ours, 'chunked': chunked, 'dense': dense},
    work,
  )
