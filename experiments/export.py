"""Writes a stage of a run as a Hugging Face folder for transformers.

  python experiments/export.py --workdir runs/quickstart --stage gft --out DIR

Weights, tokenizer and generation_config, which keep what the folder of
model.path says; the newest checkpoint that verifies. Adapters of a run with
model.lora are merged into the weights; --adapter writes them alone, as a folder
for PEFT. data.template_args and data.system of the run become defaults of the
chat template, so that the folder is asked as the run was; an adapter has no
template.
"""

import sys

import command


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', required=True, help='a run')
  parser.add_argument('--stage', required=True, help='name of a stage')
  command.add_best(parser)
  parser.add_argument('--out', required=True, help='folder to write')
  parser.add_argument(
    '--max-shard-size',
    default='5GB',
    help='of a file of weights; more go into several and an index',
  )
  parser.add_argument(
    '--adapter', action='store_true', help='adapters alone, for PEFT'
  )
  command.add_set(
    parser, 'overrides one setting, as model.path where its folder has moved'
  )
  options = parser.parse_args(arguments)

  def work():
    from gft_jax.huggingface import tensor_files
    from gft_jax.policy import export_stage

    command.check_writable('--out', options.out)
    step = export_stage(
      options.workdir,
      options.stage,
      options.out,
      best=options.best,
      adapter=options.adapter,
      max_shard_size=tensor_files.bytes_of(options.max_shard_size),
      assignments=options.set,
    )
    print(f'{options.out}: stage {options.stage}, step {step}')

  return command.run(work)


if __name__ == '__main__':
  sys.exit(main())
