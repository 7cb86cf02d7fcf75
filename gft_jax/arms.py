"""Arms: objectives from one base policy, at matched budgets, over seeds.

An arm is the last stage of a recipe. It starts from the policy that the stages
before it leave, which must be the same for all arms. A recipe of one stage
starts from its model.path.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from gft_jax import recipes
from gft_jax.config import (
  Config,
  ConfigError,
  Stage,
  differences,
  for_stage,
  overridden,
  require,
)
from gft_jax.loop import train
from gft_jax.plan import plan_stages
from gft_jax.policy import export_stage, load_policy
from gft_jax.recipes import embedded
from gft_jax.run import writers
from gft_jax.run.clock import STEP
from gft_jax.run.files import write_whole
from gft_jax.run.workdir import check_workdir
from gft_jax.types import Numbers

KINDS = ('prompts', 'tokens', 'seconds')
UNLIMITED = 1 << 30


class ArmBudget(NamedTuple):
  """How much an arm may train.

  Attributes:
    kind: 'prompts', the steps of the recipe, where an arm without own samples
      sees ten answers for each prompt of a group method (the paper's
      convention); 'tokens', trained response tokens; or 'seconds' of training,
      compilation left out.
    amount: of tokens or seconds.
  """

  kind: str = 'prompts'
  amount: float = 0


def parse_budget(text: str) -> ArmBudget:
  """'tokens=1000' -> ArmBudget('tokens', 1000.0)."""
  kind, _, amount = text.partition('=')
  wanted = f'--budget {text!r} is not prompts, tokens=N or seconds=S'
  require(kind in KINDS and (kind == 'prompts') == (not amount), wanted)
  try:
    value = float(amount or 0)
  except ValueError:
    raise ConfigError(wanted) from None
  least = 1 if kind == 'tokens' else 0
  require(kind == 'prompts' or least <= value < math.inf, wanted)
  require(kind == 'prompts' or value > 0, wanted)
  return ArmBudget(kind, value)


def read_arms(
  names_or_files: Sequence[str], assignments: Sequence[str]
) -> tuple[Config, list[Stage]]:
  """What all recipes share, with the stages of the base, and an arm of each.

  Args:
    names_or_files: of recipes, at least one.
    assignments: override settings of all of them.

  Raises:
    ConfigError: two arms of one name, or recipes that differ in more than
      their last stage; names the field.
  """
  shared: Config | None = None
  arms: list[Stage] = []
  for path in names_or_files:
    config = overridden(recipes.load(path).config, assignments)
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
      f'{path} and {names_or_files[0]} do not share a base policy: they differ'
      f' in {", ".join(changed)}',
    )
    require(
      arm.name not in [other.name for other in arms],
      f'{path}: another arm is named {arm.name!r}',
    )
    shared = rest
    arms.append(arm)
  assert shared is not None
  return shared, arms


def limited(shared: Config, arm: Stage, budget: ArmBudget) -> Stage:
  """The arm under a budget."""
  settings = for_stage(shared, arm)
  if budget.kind == 'prompts':
    if settings.group.samples:
      return arm
    answers = embedded.PROMPTS_RATIO * shared.data.batch_size
    rows = answers // settings.group.size
    more = (*arm.overrides, f'data.batch_size={rows}')
    return dataclasses.replace(arm, overrides=more)
  require(
    settings.optimizer.schedule == 'constant',
    f'arm {arm.name}: a budget of {budget.kind} has no last step for the'
    f' schedule {settings.optimizer.schedule}; set optimizer.schedule=constant',
  )
  if budget.kind == 'tokens':
    return dataclasses.replace(arm, steps=UNLIMITED, tokens=int(budget.amount))
  return dataclasses.replace(arm, steps=UNLIMITED, seconds=budget.amount)


def check_arms(
  shared: Config, arms: Sequence[Stage], seeds: Sequence[int]
) -> None:
  """Raises ConfigError for a mistake in any arm, before the first has run."""
  require(
    len(set(seeds)) == len(seeds),
    f'--seeds {" ".join(map(str, seeds))}: one is there twice',
  )
  policy = load_policy(shared)
  for arm in arms:
    plan_stages(arm_config(shared, arm, shared.model.path, seeds[0]), policy)


def base_policy(
  shared: Config, workdir: pathlib.Path
) -> tuple[str, Numbers | None]:
  """Folder and evaluation of the base policy, trained in `workdir`.

  Recipes of one stage start from model.path, which is not evaluated here.
  """
  if not shared.stages:
    return shared.model.path, None
  name = shared.stages[-1].name
  results = train(shared, workdir)
  folder = workdir / 'model'
  # Its last file: a save that was killed is begun again.
  if not (folder / 'config.json').exists():
    export_stage(workdir, name, folder)
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


def run_arm(config: Config, workdir: pathlib.Path) -> Numbers:
  """Its last evaluation and what it took; read back where it is finished."""
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
  write_whole(path, json.dumps(result, indent=1))
  return result


def run_arms(
  shared: Config,
  arms: Sequence[Stage],
  seeds: Sequence[int],
  base: str,
  folder: pathlib.Path,
  tell: Callable[[str], None],
) -> dict[str, list[Numbers]]:
  """Every arm with every seed, in FOLDER/ARM/SEED.

  An arm that diverges is told, and the others go on.

  Args:
    shared: what the arms share.
    arms: their stages, under a budget.
    seeds: of the runs.
    base: folder of the policy that all start from.
    folder: where the runs live.
    tell: takes one line when a run is over.

  Returns:
    arm -> the results of the seeds that finished.
  """
  results: dict[str, list[Numbers]] = {arm.name: [] for arm in arms}
  for arm in arms:
    for seed in seeds:
      config = arm_config(shared, arm, base, seed)
      try:
        result = run_arm(config, folder / arm.name / str(seed))
      except FloatingPointError as error:
        tell(f'{arm.name}, seed {seed}: {error}')
      else:
        results[arm.name].append(result)
        tell(f'{arm.name}, seed {seed}: done')
    # Seeds share programs, arms do not; some hundreds exhaust a process.
    jax.clear_caches()
  return results
