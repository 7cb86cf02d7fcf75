"""Compares objectives from one base policy, at matched budgets, over seeds.

  python experiments/compare.py --workdir runs/compare --seeds 0 1 2
  python experiments/compare.py --workdir runs/compare --seeds 0 1 2 \\
    --configs embedded/{sft,gft} --budget tokens=100000

Each config is an arm: its last stage, from the policy that the stages before it
leave, which must be the same in all of them; of a config with one stage, from
its model.path. Budgets:

  prompts    the steps of the config; an arm without own samples sees, per step,
             ten answers for each prompt of a group method (data.batch_size at
             the top of the config), the paper's convention
  tokens=N   each arm ends after the step in which N response tokens have trained
  seconds=S  each arm ends after S seconds of training, compilation left out

Start it again and it goes on where it stopped; a finished arm is not run again,
and further arms and seeds may be added. Writes comparison.md, .json and .png
(with --svg also .svg) to WORKDIR/BUDGET. Intervals are 95 % over seeds (Student's t).
"""

import dataclasses
import pathlib
import sys

import command

from gft_jax.config import positive
from gft_jax.recipes import embedded


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  add = parser.add_argument
  add(
    '--configs',
    nargs='+',
    action='extend',
    help='names of recipes, or files; by default all of embedded/',
  )
  add(
    '--seeds',
    nargs='+',
    action='extend',
    type=int,
    help='by default 0 1 2',
  )
  add('--budget', default='prompts', help='prompts, tokens=N or seconds=S')
  add('--steps', type=int, help="of every arm; by default each config's own")
  add('--workdir', required=True, help='where the runs live')
  add('--svg', action='store_true', help='write comparison.svg too')
  command.add_set(parser, 'overrides a setting of every config')
  options = parser.parse_args(arguments)
  options.seeds = options.seeds or [0, 1, 2]
  options.configs = options.configs or [
    f'embedded/{arm}' for arm in sorted(embedded.ARMS)
  ]
  return command.run(lambda: compare(options))


def compare(options) -> None:
  from gft_jax import arms
  from gft_jax.report import comparison

  workdir = pathlib.Path(options.workdir)
  budget = arms.parse_budget(options.budget)
  shared, stages = arms.read_arms(options.configs, options.set)
  if options.steps is not None:
    positive('--steps', options.steps)
    stages = [dataclasses.replace(s, steps=options.steps) for s in stages]
  stages = [arms.limited(shared, stage, budget) for stage in stages]
  arms.check_arms(shared, stages, options.seeds)
  base, base_result = arms.base_policy(shared, workdir / 'base')
  folder = workdir / options.budget
  results = arms.run_arms(
    shared, stages, options.seeds, base, folder, lambda x: print(x, flush=True)
  )
  table = comparison.summarize(results, base_result)
  about = {'budget': options.budget, 'seeds': options.seeds}
  comparison.write(folder, table, about, svg=options.svg)
  print(comparison.markdown(table))
  print(f'{folder}/comparison.md')


if __name__ == '__main__':
  sys.exit(main())
