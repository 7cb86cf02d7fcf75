"""Writes a stage of a run as a Hugging Face folder for transformers.

  python experiments/export.py --workdir runs/quickstart --stage gft --out DIR

Weights, tokenizer and generation_config, which keep what the folder of
model.path says; the newest checkpoint that verifies.
"""

import sys

import command


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', required=True, help='a run')
  parser.add_argument('--stage', required=True, help='name of a stage')
  parser.add_argument('--out', required=True, help='folder to write')
  parser.add_argument(
    '--max-shard-size',
    default='5GB',
    help='of a file of weights; more go into several and an index',
  )
  options = parser.parse_args(arguments)

  def work():
    from gft_jax import train
    from gft_jax.models import huggingface, tensor_files

    size = tensor_files.bytes_of(options.max_shard_size)
    config = command.read_config(options.workdir)
    command.check_stage(config, options.stage)
    policy = train.load_policy(config)
    params, step = train.result_of(policy, options.workdir, options.stage)
    huggingface.save(
      options.out,
      policy.model,
      params,
      policy.tokenizer,
      source=config.model.path or None,
      max_shard_size=size,
    )
    print(f'{options.out}: stage {options.stage}, step {step}')

  return command.run(work)


if __name__ == '__main__':
  sys.exit(main())
