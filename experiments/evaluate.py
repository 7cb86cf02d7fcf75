r"""Evaluates a stage of a run, or any Hugging Face folder.

  python experiments/evaluate.py --workdir runs/quickstart --stage gft
  python experiments/evaluate.py --config CONFIG.py --set model.path=FOLDER

prints a table and writes evaluation.json to --out, by the stage's own settings on
the run's held-out data. KL is to the policy that the run, or the folder, starts
from.

  python experiments/evaluate.py --model FOLDER --data FOLDER_OF_FILES \
    --benchmarks amc23,math500 --samples 16 --temperature 0.5 --max-tokens 4096

asks public benchmarks instead of the held-out splits.
gft_jax/data/benchmarks.py has their names and how each is asked and graded; --data holds their files,
NAME.jsonl or NAME.parquet, and `all` asks every file that is there. The
instruction of the paper follows each question unless data.instruction is set
(--set data.instruction= for none); data.system is the system turn in front of
it. A second call with the same --out goes on
where the first was interrupted, and refuses other settings. --out gets

  generations/NAME.jsonl    every answer
  settings.json             what decides about them
  evaluation.json           every number
  table.md, table.tex       accuracy (avg@n), pass@k, maj@k and the mean reward

An answer is right where its reward reaches eval.threshold, which the tables
state. The mean reward has a column where it is not the accuracy.

Without the model, kept answers are graded again, or those of two evaluations are
compared problem by problem: what did training gain, and what is forgotten? The
rule of a benchmark is its own where reward.function is not set. Columns that a
reward takes and the answers were not kept with are read from data.path.

  python experiments/evaluate.py --regrade OUT/generations/NAME.jsonl
  python experiments/evaluate.py --compare OUT_BEFORE OUT_AFTER
"""

import json
import pathlib
import sys

import command

from gft_jax.config import Config, ConfigError, overridden, override


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  command.add_config(parser, required=False)
  add = parser.add_argument
  add('--model', help='a Hugging Face folder, instead of --config')
  add('--workdir', help='a run, instead of --config')
  add('--stage', help='the stage of the run')
  command.add_best(parser)
  add('--benchmarks', help='names with commas, or all')
  add('--data', default='.', help='folder of benchmark files; by default here')
  add('--limit', type=int, help='ask the first N problems of each benchmark')
  add(
    '--samples', type=int, help='eval.samples; eval.ks becomes 1, 2, 4, ..., N'
  )
  add('--temperature', type=float, help='eval.temperature; 0 is greedy')
  add('--max-tokens', type=int, help='eval.max_response')
  add('--out', help='folder to write; by default WORKDIR/evaluation-STAGE')
  add('--regrade', metavar='FILE', help='kept answers to grade again')
  add(
    '--compare', nargs=2, metavar='OUT', help='two evaluations, before, after'
  )
  options = parser.parse_args(arguments)
  if options.regrade:
    return command.run(lambda: regrade(options))
  if options.compare:
    return command.run(lambda: compare(options))
  return command.run(lambda: evaluate(options))


def evaluate(options) -> None:
  from gft_jax import evaluate
  from gft_jax.policy import load_policy, load_stage, restore_stage
  from gft_jax.report import tables
  from gft_jax.rewards.trust import check_rewards

  config = config_of(options)
  assignments = [*flags(options), *options.set]
  config = overridden(config, assignments)
  names = evaluate.named_benchmarks(options.benchmarks)
  if not names:  # Benchmarks have rewards of their own.
    check_rewards(config, options.workdir, options.set)
  # A mistake in the last file stops before the first is asked.
  rows = evaluate.read_benchmarks(names, options.data, options.limit)
  if options.workdir:
    _, policy, params, _ = load_stage(
      options.workdir, options.stage, best=options.best, config=config
    )
  else:
    policy = load_policy(config)
    params = policy.params
  name = (options.stage or 'model') + '-best' * options.best
  out = pathlib.Path(
    options.out or f'{options.workdir or "."}/evaluation-{name}'
  )
  command.check_writable('--out', out)
  if rows:
    metrics = evaluate.ask_benchmarks(
      config, assignments, out, policy, params, rows, options.limit
    )
    table = tables.benchmark_table(metrics)
    print(tables.markdown(table), end='')
    print_failures(metrics)
    print(f'{out}/evaluation.json, table.md, table.tex, generations/')
    return
  if options.workdir and config.eval.base:
    base, _ = restore_stage(policy, options.workdir, config.eval.base)
    policy = policy._replace(params=base)
  metrics = evaluate.evaluate_policy(config, out, policy, params)
  # What this folder has of benchmarks stays.
  file = out / 'evaluation.json'
  kept = evaluate.metrics_of_benchmarks(file)
  file.write_text(json.dumps(kept | metrics, indent=1))
  print(tables.table({name: metrics}))
  print(f'{out}/evaluation.json')


def config_of(options) -> Config:
  """The settings of the run, of the recipe or of the folder."""
  given = (options.workdir, options.config, options.model)
  if sum(map(bool, given)) != 1:
    raise ConfigError('give --workdir and --stage, or --config, or --model')
  if options.best and not options.workdir:
    raise ConfigError('--best belongs to --workdir')
  if options.limit is not None and options.limit < 1:
    raise ConfigError(f'--limit {options.limit} is less than 1')
  if options.limit and not options.benchmarks:
    raise ConfigError('--limit is of --benchmarks; see eval.prompts')
  if options.config:
    return command.load_recipe(options.config, []).config
  if options.model:
    return override(Config(), f'model.path={options.model}')
  return command.model_config(options)


def flags(options) -> list[str]:
  """The flags that stand for settings, as assignments."""
  from gft_jax.evaluation.generations import sensible_ks

  assignments = []
  if options.samples is not None:
    ks = ','.join(map(str, sensible_ks(options.samples)))
    # No k may exceed the samples at any time.
    assignments += ['eval.ks=', f'eval.samples={options.samples}']
    assignments += [f'eval.ks={ks}']
  if options.temperature is not None:
    assignments += [f'eval.temperature={options.temperature}']
  if options.max_tokens is not None:
    assignments += [f'eval.max_response={options.max_tokens}']
  return assignments


def print_failures(metrics: dict[str, float]) -> None:
  """One line for each cause for which answers count as wrong."""
  for name, count in metrics.items():
    _, mark, cause = name.partition('/reward_failures/')
    if mark and cause != 'parse':  # An answer without an answer is normal.
      where = name.split('/')[1]
      print(f'{where}: {count} answers could not be graded: {cause}')


def regrade(options) -> None:
  from gft_jax.data import benchmarks
  from gft_jax.evaluation import generations
  from gft_jax.report import tables
  from gft_jax.rewards.grader import evaluation_reward

  path = pathlib.Path(options.regrade)
  # So many samples that any k of --set passes; the file says how many it has.
  defaults = ['eval.ks=', f'eval.samples={sys.maxsize}', 'reward.workers=2']
  if path.stem in benchmarks.BENCHMARKS:
    own = benchmarks.BENCHMARKS[path.stem].reward
    defaults.append(f'reward.function={own}')
  config = overridden(Config(), [*defaults, *options.set])
  reward = evaluation_reward(config)
  dataset = config.data if config.data.path else None
  metrics = generations.regrade(
    path,
    reward,
    config.eval.ks,
    dataset,
    threshold=config.eval.threshold,
  )
  found = {f'eval/{path.stem}/{k}': v for k, v in metrics.items()}
  print(tables.markdown(tables.benchmark_table(found)), end='')
  print_failures(found)


def compare(options) -> None:
  from gft_jax.evaluate import named_benchmarks
  from gft_jax.evaluation import generations
  from gft_jax.report import tables

  before, after = (pathlib.Path(out) / 'generations' for out in options.compare)
  kept = [
    {p.stem for p in folder.glob('*.jsonl')} for folder in (before, after)
  ]
  for folder, names in zip((before, after), kept):
    if not names:
      raise ConfigError(f'--compare: no finished benchmark in {folder}')
  names = named_benchmarks(options.benchmarks)
  if names in ([], ['all']):
    names = sorted(kept[0] & kept[1])
    for name in sorted(kept[0] ^ kept[1]):
      print(f'{name} is in one of the two only', file=sys.stderr)
  if not names:
    raise ConfigError(f'--compare: {before} and {after} share no benchmark')
  found = {
    name: generations.paired(
      before / f'{name}.jsonl',
      after / f'{name}.jsonl',
      threshold=threshold_of(options, name),
    )
    for name in names
  }
  table = tables.comparison_table(found)
  print(tables.markdown(table), end='')
  if options.out:
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / 'comparison.json').write_text(json.dumps(found, indent=1))
    tables.write(out / 'comparison', table)


def threshold_of(options, name: str) -> float:
  """From which reward an answer is right: of --set, or of both evaluations."""
  from gft_jax.evaluate import read_metrics

  stated = [
    read_metrics(pathlib.Path(out) / 'evaluation.json').get(
      f'eval/{name}/threshold', Config().eval.threshold
    )
    for out in options.compare
  ]
  config = overridden(Config(), [f'eval.threshold={stated[0]}', *options.set])
  named = any(text.startswith('eval.threshold=') for text in options.set)
  if len(set(stated)) > 1 and not named:
    raise ConfigError(
      f'--compare: {name} was counted with eval.threshold={stated[0]:g} and'
      f' {stated[1]:g}; name one with --set eval.threshold=...'
    )
  return config.eval.threshold


if __name__ == '__main__':
  sys.exit(main())
