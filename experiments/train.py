"""Runs, or resumes, a recipe.

  python experiments/train.py --config NAME_OR_FILE --workdir DIR --set a.b=c

NAME is a recipe of gft_jax/recipes, such as quickstart or embedded/gft; FILE has
get_config() -> Config.

The same command continues an interrupted run. For a run of several processes
see experiments/pods/. Exit codes: 0 done; 1 stopped by a non-finite step, a full
disk, or because another process is gone; 2 a setting or an input that cannot
work, and nothing was written; 143 (SIGTERM) and 130 (Ctrl-C) stopped, and saved;
130 also where nothing was to be saved yet.
"""

import sys

import command


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  command.add_config(parser)
  parser.add_argument('--workdir', required=True, help='where the run lives')
  options = parser.parse_args(arguments)

  def work():
    import jax

    from gft_jax.loop import train
    from gft_jax.parallel import processes
    from gft_jax.report import tables

    recipe = command.load_recipe(options.config, options.set)
    processes.initialize_processes()
    results = train(recipe.config, options.workdir)
    if jax.process_index() != 0:
      return  # Process 0 speaks for all.
    print(tables.table(results))
    if recipe.claims:
      for claim, holds in recipe.claims(results).items():
        print(f'{"holds" if holds else "DOES NOT HOLD"}: {claim}')
    if recipe.config.log.report:
      print(f'report: {options.workdir}/report/index.html')

  return command.run(work)


if __name__ == '__main__':
  sys.exit(main())
