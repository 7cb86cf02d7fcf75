"""Answers of a policy outside of a run: to prompts, to rows of a dataset."""

import jax
import numpy as np

from gft_jax import data
from gft_jax.batch import Prompts, Responses
from gft_jax.config import Config, ConfigError, require
from gft_jax.data import pipeline
from gft_jax.engine import Engine, open_engine
from gft_jax.parallel.mesh import prompt_holders, warn_of_idle_devices
from gft_jax.policy import Policy
from gft_jax.rollout import groups
from gft_jax.types import Params

# Prompts are padded to a multiple of this, so that few programs are compiled.
MULTIPLE = 32


def width_of_prompts(policy: Policy, longest: int, max_tokens: int) -> int:
  """How wide prompts of up to `longest` tokens are padded.

  Raises:
    ConfigError: with their answers they exceed the positions of the model.
  """
  room = policy.model.architecture.max_positions
  require(
    longest + max_tokens <= room,
    f'a prompt of {longest} tokens and --max-tokens {max_tokens} exceed the'
    f' {room} positions of the model',
  )
  return -(-longest // MULTIPLE) * MULTIPLE


def prompts_to_ask(
  config: Config, policy: Policy, texts: list[str], max_tokens: int
) -> Prompts:
  """Prompts as the policy is asked them, in its chat template.

  Raises:
    ConfigError: a text that the tokenizer does not know, or that with an answer
      of `max_tokens` exceeds the positions of the model.
  """
  ids = pipeline.encode_prompts(texts, config.data, policy.tokenizer)
  length = np.array([len(row) for row in ids], np.int32)
  unknown = pipeline.unknown_id(policy.tokenizer)
  for number, row in enumerate(ids, 1):
    if not len(row) or unknown in row:
      fault = (
        'text that the tokenizer does not know' if len(row) else 'no token'
      )
      raise ConfigError(f'--prompt number {number} has {fault}')
  size = width_of_prompts(policy, int(length.max()), max_tokens)
  return Prompts(
    tokens=np.array([row + [0] * (size - len(row)) for row in ids], np.int32),
    length=length,
    index=np.arange(len(ids), dtype=np.int32),
  )


def answer_prompts(
  config: Config,
  policy: Policy,
  params: Params,
  texts: list[str],
  samples: int,
  max_tokens: int,
) -> tuple[list[list[str]], np.ndarray, Responses]:
  """Samples answers to prompts, by `config.sampler` and `config.seed`.

  Args:
    config: of the sampler, the template, the mesh and the seed.
    policy: its model and tokenizer.
    params: what answers.
    texts: N prompts.
    samples: answers to each.
    max_tokens: of an answer.

  Returns:
    texts of the answers, [N][samples]; which of them stopped by themselves,
    [N, samples] bool; and their tokens, of N prompts or more.

  Raises:
    ConfigError: as `encode_prompts`.
  """
  prompts = prompts_to_ask(config, policy, texts, max_tokens)
  # The mesh of a run may hold more prompts than were given.
  _, holders = prompt_holders(config.mesh)
  rows = -(-len(texts) // holders) * holders
  prompts = groups.pad_rows(prompts, rows)
  with open_engine(config, policy) as engine:
    warn_of_idle_devices(config.mesh)
    responses = engine.sample(
      params,
      prompts,
      engine.key('evaluate', 0),
      config.sampler,
      samples,
      max_tokens,
    )
    answers, finished = engine.decode(responses, config.sampler, prompts)
  return answers, finished, responses


def answer_examples(
  engine: Engine,
  params: Params,
  examples: data.Examples,
  config: Config,
  width: int,
) -> tuple[list[list[str]], np.ndarray]:
  """Texts [B][G] of the model and which are finished, [B, G] bool.

  The random bits of an answer depend on (seed, row, member) alone, and every
  call has the same shape, so that a batch comes out the same at any time.
  """
  prompts = pipeline.prompts_of(examples)
  count = len(prompts.index)
  prompts = prompts.replace(tokens=prompts.tokens[:, :width])
  responses = engine.sample(
    params,
    groups.pad_rows(prompts, config.data.batch_size),
    engine.key('evaluate', 0),
    config.sampler,
    config.group.samples,
    config.data.max_response,
  )
  responses = jax.tree.map(lambda x: x[:count], responses)
  return engine.decode(responses, config.sampler, prompts)
