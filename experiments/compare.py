"""Compares objectives from one base policy, at matched budgets, over seeds.

  python experiments/compare.py --workdir runs/compare --seeds 0 1 2
  python experiments/compare.py --workdir runs/compare --seeds 0 1 2 \\
    --configs experiments/configs/embedded/{sft,gft}.py --budget tokens=100000

Each config is an arm: its last stage, from the policy that the stages before it
leave, which must be the same in all of them; of a config with one stage, from
its model.path. Budgets:

  prompts    the steps of the config; an arm without own samples sees, per step,
             ten answers for each prompt of a group method (data.batch_size at
             the top of the config), the paper's convention
  tokens=N   each arm ends after the step in which N response tokens have trained
  seconds=S  each arm ends after S seconds of training, compilation left out

Start it again and it goes on where it stopped; a finished arm is not run again,
and further arms and seeds may be added. Writes comparison.md, .json, .png and
.svg to WORKDIR/BUDGET. Intervals are 95 % over seeds (Student's t).
"""

import dataclasses
import json
import math
import pathlib
import sys
from typing import Any, NamedTuple

import command
import embedded

from gft_jax.config import (
  Config,
  ConfigError,
  Stage,
  differences,
  for_stage,
  positive,
  require,
)

EMBEDDED = pathlib.Path(__file__).parent / 'configs' / 'embedded'
BUDGETS = ('prompts', 'tokens', 'seconds')
UNLIMITED = 1 << 30

Result = dict[str, float]


class Interval(NamedTuple):
  """Mean over seeds and half the width of its 95 % interval."""

  mean: float
  reach: float

  def __str__(self) -> str:
    if math.isnan(self.mean):
      return '–'
    if math.isnan(self.reach):
      return f'{self.mean:.3f}'
    return f'{self.mean:.3f} ± {self.reach:.3f}'


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  parser.add_argument(
    '--configs',
    nargs='+',
    default=sorted(map(str, EMBEDDED.glob('*.py'))),
    help='arms; by default every objective on the embedded task',
  )
  parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
  parser.add_argument(
    '--budget', default='prompts', help='prompts, tokens=N or seconds=S'
  )
  parser.add_argument(
    '--steps', type=int, help="of every arm; by default each config's own"
  )
  parser.add_argument('--workdir', required=True, help='where the runs live')
  command.add_set(
    parser,
    'overrides a setting of every config',
  )
  options = parser.parse_args(arguments)

  def work():
    import jax

    workdir = pathlib.Path(options.workdir)
    kind, amount = parse_budget(options.budget)
    shared, stages = read_arms(options.configs, options.set)
    require(
      len(set(options.seeds)) == len(options.seeds),
      f'--seeds {" ".join(map(str, options.seeds))}: one is there twice',
    )
    if options.steps is not None:
      positive('--steps', options.steps)
      stages = [dataclasses.replace(s, steps=options.steps) for s in stages]
    arms = [limited(shared, stage, kind, amount) for stage in stages]
    check_arms(shared, arms, options.seeds[0])
    base, base_result = base_policy(shared, workdir / 'base')
    folder = workdir / options.budget
    results: dict[str, list[Result]] = {stage.name: [] for stage in arms}
    for stage in arms:
      for seed in options.seeds:
        config = arm_config(shared, stage, base, seed)
        run = folder / stage.name / str(seed)
        try:
          results[stage.name].append(run_arm(config, run))
          print(f'{stage.name}, seed {seed}: done', flush=True)
        except FloatingPointError as error:
          # The others go on; a table of what is left is better than none.
          print(f'{stage.name}, seed {seed}: {error}', flush=True)
      # Seeds share programs, arms do not; some hundreds exhaust a process.
      jax.clear_caches()
    table = summarize(results)
    if base_result:
      table = {
        'base': {k: Interval(v, math.nan) for k, v in base_result.items()}
      } | table
    write(folder, table, options.budget, options.seeds)
    print(markdown(table))
    print(f'{folder}/comparison.md')

  return command.run(work)


def parse_budget(text: str) -> tuple[str, float]:
  """'tokens=1000' -> ('tokens', 1000.0)."""
  kind, _, amount = text.partition('=')
  wanted = f'--budget {text!r} is not prompts, tokens=N or seconds=S'
  require(kind in BUDGETS and (kind == 'prompts') == (not amount), wanted)
  try:
    value = float(amount or 0)
  except ValueError:
    raise ConfigError(wanted) from None
  least = 1 if kind == 'tokens' else 0
  require(kind == 'prompts' or least <= value < math.inf, wanted)
  require(kind == 'prompts' or value > 0, wanted)
  return kind, value


def read_arms(
  paths: list[str], assignments: list[str]
) -> tuple[Config, list[Stage]]:
  """What all configs share, with the stages of the base, and an arm of each.

  Raises:
    ConfigError: two arms of one name, or configs that differ in more than
      their last stage; names the field.
  """
  shared, arms = None, []
  for path in paths:
    config = command.load_recipe(path, assignments).config
    *before, arm = config.stages
    require(
      arm.start == (before[-1].name if before else ''),
      f'{path}: stage {arm.name!r} does not start from the stage before it',
    )
    require(
      bool(before or config.model.path),
      f'{path}: a config of one stage needs a model.path to start from',
    )
    rest = dataclasses.replace(config, stages=tuple(before))
    changed = [d.partition(':')[0] for d in differences(shared or rest, rest)]
    require(
      not changed,
      f'{path} and {paths[0]} do not share a base policy: they differ in'
      f' {", ".join(changed)}',
    )
    require(
      arm.name not in [other.name for other in arms],
      f'{path}: another arm is named {arm.name!r}',
    )
    shared = rest
    arms.append(arm)
  return shared, arms


def limited(shared: Config, arm: Stage, kind: str, amount: float) -> Stage:
  """The arm under a budget."""
  settings = for_stage(shared, arm)
  if kind == 'prompts':
    if settings.group.samples:
      return arm
    answers = embedded.PROMPTS_RATIO * shared.data.batch_size
    rows = answers // settings.group.size
    more = (*arm.overrides, f'data.batch_size={rows}')
    return dataclasses.replace(arm, overrides=more)
  require(
    settings.optimizer.schedule == 'constant',
    f'arm {arm.name}: a budget of {kind} has no last step for the schedule'
    f' {settings.optimizer.schedule}; set optimizer.schedule=constant',
  )
  value = int(amount) if kind == 'tokens' else amount
  return dataclasses.replace(arm, steps=UNLIMITED, **{kind: value})


def check_arms(shared: Config, arms: list[Stage], seed: int) -> None:
  """Raises ConfigError for a mistake in any arm, before the first has run."""
  from gft_jax.plan import plan_stages
  from gft_jax.policy import load_policy

  policy = load_policy(shared)
  for arm in arms:
    plan_stages(arm_config(shared, arm, shared.model.path, seed), policy)


def base_policy(
  shared: Config, workdir: pathlib.Path
) -> tuple[str, Result | None]:
  """Folder of the base policy, trained here where the configs say how."""
  if not shared.stages:
    return shared.model.path, None
  from gft_jax import huggingface
  from gft_jax.loop import train
  from gft_jax.models import lora
  from gft_jax.policy import load_policy, restore_stage

  name = shared.stages[-1].name
  results = train(shared, workdir)
  folder = workdir / 'model'
  # Its last file: a save that was killed is begun again.
  if not (folder / 'config.json').exists():
    policy = load_policy(shared)
    params, _ = restore_stage(policy, workdir, name)
    params = lora.merge(policy.model, policy.frozen, params)
    huggingface.save(
      folder,
      policy.model,
      params,
      policy.tokenizer,
      source=shared.model.path or None,
    )
  return str(folder), results[name]


def arm_config(shared: Config, arm: Stage, base: str, seed: int) -> Config:
  """A run of one stage from the base policy."""
  quiet = dataclasses.replace(
    shared.log, progress=False, tensorboard=False, report=False
  )
  return dataclasses.replace(
    shared,
    seed=seed,
    model=dataclasses.replace(shared.model, path=base),
    eval=dataclasses.replace(shared.eval, base='', before=False),
    log=quiet,
    stages=(dataclasses.replace(arm, start=''),),
  )


def run_arm(config: Config, workdir: pathlib.Path) -> Result:
  """Its last evaluation and what it took; read back where it is finished."""
  from gft_jax.loop import train
  from gft_jax.run import writers
  from gft_jax.run.clock import STEP
  from gft_jax.run.workdir import check_workdir

  check_workdir(workdir, config)
  path = workdir / 'result.json'
  if path.exists():
    return json.loads(path.read_text())
  (result,) = train(config, workdir).values()
  steps = [r for r in writers.read_metrics(workdir) if 'train/loss' in r]
  result |= {
    'cost/steps': len(steps),
    'cost/tokens': sum(r['train/tokens'] for r in steps),
    # In the first step everything is cold.
    'cost/seconds': sum(
      r.get(f'time/{phase}', 0) for r in steps[1:] for phase in STEP
    ),
  }
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(result, indent=1))
  temporary.rename(path)
  return result


def summarize(
  results: dict[str, list[Result]],
) -> dict[str, dict[str, Interval]]:
  """arm -> metric -> interval over seeds, of what every seed has measured."""
  table = {}
  for arm, runs in results.items():
    if not runs:
      continue
    common = [name for name in runs[0] if all(name in run for run in runs)]
    table[arm] = {name: interval([r[name] for r in runs]) for name in common}
  return table


def interval(values: list[float]) -> Interval:
  import numpy as np
  import scipy.stats

  n, mean = len(values), float(np.mean(values))
  if n == 1:
    return Interval(mean, math.nan)
  reach = scipy.stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5
  return Interval(mean, float(reach))


def accuracies(table: dict[str, dict[str, Interval]]) -> dict[str, str]:
  """Metric -> split, of the accuracies of a table."""
  names = [n for row in table.values() for n in row if '/avg@' in n]
  names = [n for n in dict.fromkeys(names) if not n.endswith(('_low', '_high'))]
  return {name: name.split('/')[1] for name in names}


def markdown(table: dict[str, dict[str, Interval]]) -> str:
  """One row an arm: accuracy by split, drift, and what it took."""
  columns: dict[str, Any] = accuracies(table) | {
    'eval/kl_to_base': 'KL to base per token',
    'eval/entropy': 'entropy per token',
    'cost/steps': 'steps',
    'cost/tokens': 'trained tokens',
    'cost/seconds': 'seconds',
  }
  lines = [
    f'| arm | {" | ".join(columns.values())} |',
    f'|---|{"---|" * len(columns)}',
  ]
  for arm, row in table.items():
    cells = []
    for name in columns:
      if name not in row:
        cells.append('')
      elif name.startswith('cost/'):
        cells.append(f'{row[name].mean:,.0f}')
      else:
        cells.append(str(row[name]))
    lines.append(f'| {arm} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def write(
  folder: pathlib.Path,
  table: dict[str, dict[str, Interval]],
  budget: str,
  seeds: list[int],
) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  values = {
    'budget': budget,
    'seeds': seeds,
    'arms': {
      arm: {name: value.mean for name, value in row.items()}
      | {f'{name}_reach': value.reach for name, value in row.items()}
      for arm, row in table.items()
    },
  }
  text = json.dumps(values, indent=1).replace('NaN', 'null')
  (folder / 'comparison.json').write_text(text)
  (folder / 'comparison.md').write_text(markdown(table) + '\n')
  figure(folder, table)


def figure(folder: pathlib.Path, table: dict[str, dict[str, Interval]]) -> None:
  """One panel a split, one row an arm; the dotted line is the base policy."""
  import matplotlib
  from matplotlib.figure import Figure

  from gft_jax.report import figures

  arms = [arm for arm in table if arm != 'base']
  splits = accuracies(table)
  with matplotlib.rc_context(figures.STYLE):
    drawing = Figure(figsize=(2.3 * len(splits) + 1, 0.23 * len(arms) + 1))
    axes = drawing.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for ax, (name, split) in zip(axes, splits.items()):
      for y, arm in enumerate(arms):
        if name not in table[arm]:
          continue
        mean, reach = table[arm][name]
        ax.errorbar(
          mean,
          y,
          xerr=0 if math.isnan(reach) else reach,
          fmt='o',
          ms=4,
          color=figures.BLUE,
          capsize=2,
        )
      if 'base' in table and name in table['base']:
        ax.axvline(table['base'][name].mean, color=figures.GREY, ls=':', lw=1)
      ax.set_title(split)
      ax.set_xlabel('accuracy')
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    for kind in ('png', 'svg'):
      drawing.savefig(folder / f'comparison.{kind}')


if __name__ == '__main__':
  sys.exit(main())
