"""Evaluates a stage of a run, or any Hugging Face folder.

  python experiments/evaluate.py --workdir runs/quickstart --stage gft
  python experiments/evaluate.py --config CONFIG.py --set model.path=FOLDER
  python experiments/evaluate.py --model FOLDER --benchmarks svamp,amc23 \
    --data FOLDER_OF_FILES --set eval.samples=16 eval.max_response=1024

Prints a table and writes evaluation.json to --out. More samples, say, with
--set eval.samples=16 eval.ks=1,4,16. KL is to the policy that the run, or the
folder, starts from. --benchmarks asks public benchmarks (data.benchmarks has
their names) instead of the held-out splits: all rows, each graded by its own
rule; --data holds their files, NAME.jsonl.

Every answer is kept under OUT/generations/ (OUT/NAME/generations/ of a
benchmark); --regrade FILE grades such a file again, without the model:

  python experiments/evaluate.py --regrade FILE --set reward.function=math
"""

import json
import pathlib
import sys

import command

from gft_jax.config import Config, ConfigError, override


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  command.add_config(parser, required=False)
  parser.add_argument('--model', help='a folder or hub id, instead of both')
  parser.add_argument('--benchmarks', help='names, with commas')
  parser.add_argument('--regrade', metavar='FILE', help='kept answers')
  parser.add_argument('--data', default='.', help='folder of benchmark files')
  parser.add_argument('--workdir', help='a run, instead of --config')
  parser.add_argument('--stage', help='the stage of the run')
  parser.add_argument(
    '--out', help='folder to write; by default WORKDIR/evaluation-STAGE'
  )
  options = parser.parse_args(arguments)

  def work():
    from gft_jax import evaluate, report, rewards, train

    if options.regrade:
      config = command.overridden(Config(), options.set)
      path = pathlib.Path(options.regrade)
      with rewards.Grader(config.reward) as grader:
        metrics = evaluate.regrade(path, grader, config.eval.ks)
      found = {f'eval/{path.stem}/{k}': v for k, v in metrics.items()}
      print(report.table({'regraded': found}))
      return
    given = (options.workdir, options.config, options.model)
    if sum(map(bool, given)) != 1:
      raise ConfigError('give --workdir and --stage, or --config, or --model')
    if options.workdir:
      config = command.read_config(options.workdir)
      command.check_stage(config, options.stage)
    elif options.config:
      config = command.load_recipe(options.config, []).config
    else:
      config = override(Config(), f'model.path={options.model}')
    config = command.overridden(config, options.set)
    # A mistake in the last file stops before the first is asked.
    names = options.benchmarks.split(',') if options.benchmarks else []
    rows = {name: read_benchmark(options.data, name) for name in names}
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
    metrics = {}
    for benchmark, questions in rows.items():
      asked = ask(config, benchmark, questions, out)
      asked = command.overridden(asked, options.set)
      found = train.evaluate_policy(asked, out / benchmark, policy, params)
      metrics |= {
        key.replace('/test/', f'/{benchmark}/'): value
        for key, value in found.items()
      }
    if not rows:
      metrics = train.evaluate_policy(config, out, policy, params)
    (out / 'evaluation.json').write_text(json.dumps(metrics, indent=1))
    print(report.table({name: metrics}))
    print(f'{out}/evaluation.json')

  return command.run(work)


def read_benchmark(folder: str, name: str) -> list[dict[str, str]]:
  from gft_jax.data import benchmarks

  return benchmarks.rows(name, pathlib.Path(folder) / f'{name}.jsonl')


def ask(
  config: Config, name: str, rows: list[dict[str, str]], out: pathlib.Path
) -> Config:
  """The settings under which all rows of a benchmark are the test split."""
  from gft_jax.data import benchmarks

  path = out / 'benchmarks' / f'{name}.jsonl'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  assignments = [
    *(f'data.path={path}', f'data.eval_path={path}', 'data.columns='),
    *('data.max_prompt=1024', 'data.split=train'),
    *('group.experts=0', 'group.teachers=0', 'group.samples=1'),
    f'reward.function={benchmarks.BENCHMARKS[name].reward}',
    *('reward.workers=2', 'eval.splits=test', f'eval.prompts={len(rows)}'),
    *('eval.max_response=1024', 'eval.batch_size=32', 'eval.kl_prompts=0'),
  ]
  return command.overridden(config, assignments)


if __name__ == '__main__':
  sys.exit(main())
