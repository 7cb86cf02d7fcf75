"""Samples answers of any model: a first look.

  python experiments/generate.py --model FOLDER --prompt 'What is 7 x 8?'
  python experiments/generate.py --workdir runs/quickstart --stage gft \\
    --prompt '7+8-3:' --samples 4

Each answer is printed under a line that says how it ended. A prompt goes through
the tokenizer's chat template where it has one (--set data.template=plain for
none); --set sampler.top_p=0.9 and other settings of the sampler apply.
"""

import sys

import command

from gft_jax.config import ConfigError

# Prompts are padded to a multiple of this, so that few programs are compiled.
MULTIPLE = 32


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  command.add_model(parser)
  parser.add_argument('--prompt', nargs='+', required=True)
  parser.add_argument('--samples', type=int, default=1)
  parser.add_argument('--max-tokens', type=int, default=256)
  parser.add_argument(
    '--temperature', type=float, default=1.0, help='0: greedy'
  )
  parser.add_argument('--seed', type=int, default=0)
  command.add_set(parser, 'overrides one setting; may be repeated')
  options = parser.parse_args(arguments)
  return command.run(lambda: generate(options))


def generate(options) -> None:
  import numpy as np

  from gft_jax.batch import Prompts
  from gft_jax.data import pipeline
  from gft_jax.engine import open_engine
  from gft_jax.parallel.mesh import prompt_holders
  from gft_jax.rollout import groups

  for name in ('samples', 'max_tokens'):
    if getattr(options, name) < 1:
      flag = name.replace('_', '-')
      raise ConfigError(f'--{flag} {getattr(options, name)} is less than 1')
  flags = f'sampler.temperature={options.temperature}', f'seed={options.seed}'
  config = command.overridden(
    command.model_config(options), (*flags, *options.set)
  )
  policy, params = command.load_model(options, config)

  ids = pipeline.encode_prompts(options.prompt, config.data, policy.tokenizer)
  length = np.array([len(row) for row in ids], np.int32)
  unknown = pipeline.unknown_id(policy.tokenizer)
  for number, row in enumerate(ids, 1):
    if not len(row) or unknown in row:
      fault = (
        'text that the tokenizer does not know' if len(row) else 'no token'
      )
      raise ConfigError(f'--prompt number {number} has {fault}')
  size = -(-length.max() // MULTIPLE) * MULTIPLE
  room = policy.model.architecture.max_positions
  if length.max() + options.max_tokens > room:
    raise ConfigError(
      f'a prompt of {length.max()} tokens and --max-tokens'
      f' {options.max_tokens} exceed the {room} positions of the model'
    )
  prompts = Prompts(
    tokens=np.array([row + [0] * (size - len(row)) for row in ids], np.int32),
    length=length,
    index=np.arange(len(ids), dtype=np.int32),
  )
  # The mesh of a run may hold more prompts than were given.
  _, holders = prompt_holders(config.mesh)
  with open_engine(config, policy) as engine:
    responses = engine.sample(
      params,
      groups.pad_rows(prompts, -(-len(ids) // holders) * holders),
      engine.key('evaluate', 0),
      config.sampler,
      options.samples,
      options.max_tokens,
    )
    texts, finished = engine.decode(responses, config.sampler)
  for b, g in np.ndindex(len(ids), options.samples):
    end = 'stopped' if finished[b, g] else 'cut at --max-tokens'
    count, total = responses.length[b, g], responses.behavior_logp[b, g].sum()
    print(
      f'--- {options.prompt[b]!r}, answer {g + 1}: {count} tokens, {end},'
      f' log p {total:.2f}'
    )
    print(texts[b][g])


if __name__ == '__main__':
  sys.exit(main())
