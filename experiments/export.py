"""Writes a stage of a run as a Hugging Face folder for transformers.

  python experiments/export.py --workdir runs/quickstart --stage gft --out DIR

Weights, tokenizer and generation_config, which keep what the folder of
model.path says; the newest checkpoint that verifies. Adapters of a run with
model.lora are merged into the weights; --adapter writes them alone, as a folder
for PEFT.
"""

import dataclasses
import pathlib
import sys

import command

from gft_jax.config import ConfigError, MeshConfig


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
  options = parser.parse_args(arguments)

  def work():
    import jax

    from gft_jax import huggingface
    from gft_jax.huggingface import peft, tensor_files
    from gft_jax.models import lora
    from gft_jax.policy import load_policy, restore_stage

    command.check_writable('--out', options.out)
    size = tensor_files.bytes_of(options.max_shard_size)
    config = command.read_config(options.workdir)
    command.check_stage(config, options.stage, options.best)
    if options.adapter and not config.model.lora.rank:
      raise ConfigError(
        '--adapter: the run has no adapters (model.lora.rank=0); without the'
        ' flag its weights are exported'
      )
    if config.mesh.size > jax.device_count():
      # A run of a pod is exported where its weights fit one device.
      config = dataclasses.replace(config, mesh=MeshConfig())
    policy = load_policy(config)
    params, step = restore_stage(
      policy, options.workdir, options.stage, best=options.best
    )
    if options.adapter:
      base = str(pathlib.Path(config.model.path).expanduser())
      peft.save(options.out, policy.model, params, base=base)
    else:
      huggingface.save(
        options.out,
        policy.model,
        lora.merge(policy.model, policy.frozen, params),
        policy.tokenizer,
        source=config.model.path or None,
        max_shard_size=size,
      )
    print(f'{options.out}: stage {options.stage}, step {step}')

  return command.run(work)


if __name__ == '__main__':
  sys.exit(main())
