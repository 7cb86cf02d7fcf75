"""Evaluates a stage of a run, or any Hugging Face folder.

  python experiments/evaluate.py --workdir runs/quickstart --stage gft
  python experiments/evaluate.py --config CONFIG.py --set model.path=FOLDER
  python experiments/evaluate.py --model FOLDER --benchmarks svamp,amc23 \
    --data FOLDER_OF_FILES --set eval.samples=16 eval.max_response=1024

Prints a table and writes evaluation.json to --out. More samples, say, with
--set eval.samples=16 eval.ks=1,4,16. KL is to the policy that the run, or the
folder, starts from.
"""

import json
import pathlib
import sys

import command

from gft_jax.config import ConfigError, override


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  command.add_config(parser, required=False)
  parser.add_argument('--workdir', help='a run, instead of --config')
  parser.add_argument('--stage', help='the stage of the run')
  parser.add_argument(
    '--out', help='folder to write; by default WORKDIR/evaluation-STAGE'
  )
  options = parser.parse_args(arguments)

  def work():
    from gft_jax import report, train

    if bool(options.workdir) == bool(options.config):
      raise ConfigError('give --workdir and --stage, or --config')
    if options.workdir:
      config = command.read_config(options.workdir)
      command.check_stage(config, options.stage)
      for assignment in options.set:
        config = override(config, assignment)
    else:
      config = command.load_recipe(options.config, options.set).config
    policy = train.load_policy(config)
    params = policy.params
    if options.workdir:
      params, _ = train.result_of(policy, options.workdir, options.stage)
      if config.eval.base:
        base, _ = train.result_of(policy, options.workdir, config.eval.base)
        policy = policy._replace(params=base)
    name = options.stage or 'model'
    out = pathlib.Path(
      options.out or f'{options.workdir or "."}/evaluation-{name}'
    )
    metrics = train.evaluate_policy(config, out, policy, params)
    (out / 'evaluation.json').write_text(json.dumps(metrics, indent=1))
    print(report.table({name: metrics}))
    print(f'{out}/evaluation.json')

  return command.run(work)


if __name__ == '__main__':
  sys.exit(main())
