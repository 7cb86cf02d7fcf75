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

from gft_jax.config import ConfigError, overridden


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  command.add_model(parser)
  parser.add_argument(
    '--prompt',
    nargs='+',
    action='extend',
    required=True,
    help='one text or several; may be repeated',
  )
  parser.add_argument('--samples', type=int, default=1)
  parser.add_argument('--max-tokens', type=int, default=256)
  parser.add_argument(
    '--temperature', type=float, default=1.0, help='0: greedy'
  )
  parser.add_argument('--seed', type=int, default=0)
  command.add_set(parser, 'overrides one setting; may be repeated')
  options = parser.parse_args(command.with_texts(arguments, '--prompt'))
  return command.run(lambda: generate(options))


def generate(options) -> None:
  from gft_jax.generate import answer_prompts

  for name in ('samples', 'max_tokens'):
    if getattr(options, name) < 1:
      flag = name.replace('_', '-')
      raise ConfigError(f'--{flag} {getattr(options, name)} is less than 1')
  flags = f'sampler.temperature={options.temperature}', f'seed={options.seed}'
  config = overridden(command.model_config(options), (*flags, *options.set))
  policy, params = command.load_model(options, config)
  texts, finished, responses = answer_prompts(
    config,
    policy,
    params,
    options.prompt,
    options.samples,
    options.max_tokens,
  )
  for b, prompt in enumerate(options.prompt):
    for g in range(options.samples):
      end = 'stopped' if finished[b, g] else 'cut at --max-tokens'
      count = responses.length[b, g]
      total = responses.behavior_logp[b, g].sum()
      print(
        f'--- {prompt!r}, answer {g + 1}: {count} tokens, {end},'
        f' log p {total:.2f}'
      )
      print(texts[b][g])


if __name__ == '__main__':
  sys.exit(main())
