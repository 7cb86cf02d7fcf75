"""Every figure and table of the paper, from runs on the embedded task.

  python experiments/reproduce.py --workdir runs/reproduction
  python experiments/reproduce.py --workdir runs/small --scale small  # a GPU

For each seed: a base policy from scratch, every method of Table 1 from it, the
ablations, pipelines, sweeps and other styles of expert, then many answers for
pass@k. Start it again and it goes on where it stopped; more seeds may be added.
A run that diverges ends there, and the others go on.

Writes to --out (by default WORKDIR/summary) README.md and index.html with every
figure, table and verdict, results.json with the numbers, and a PNG of each figure
(with --svg an SVG too). Every run has its own report: WORKDIR/SEED/FAMILY/report/index.html.
"""

import dataclasses
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import command

from gft_jax.config import Architecture, Config, Stage, require
from gft_jax.recipes import embedded

WORKED = 'gft_jax.data.arithmetic:worked'
STATE = 'reproduction.json'


class Scale(NamedTuple):
  """How large a reproduction is; batches and steps are those of the recipes.

  Attributes:
    architecture: of the decoder.
    base_steps: of pre-training.
    steps: of each stage.
    answers: per prompt, for pass@k.
  """

  architecture: Architecture
  base_steps: int
  steps: int
  answers: int


# `small` is for a GPU; on a CPU its first steps were run.
SCALES = {
  'embedded': Scale(Architecture(), 2000, embedded.STEPS, 256),
  'small': Scale(
    Architecture(width=256, layers=6, heads=8, head_size=32, mlp_width=704),
    4000,
    embedded.STEPS,
    1024,
  ),
}
# What --scale, --seeds and the arms decide.
DECIDED = (
  *('seed', 'stages', 'model.path', 'model.architecture', 'data.path'),
  *('data.batch_size', 'group', 'eval.base', 'eval.every', 'log'),
)
METHODS = (
  *('sft', 'gft', 'grpo', 'gft_no_dcr', 'gft_no_gal', 'sft_mix', 'asft'),
  *('psft', 'dft', 'luffy', 'chord_phi', 'gft_no_mix'),
)
# Each objective with and without DCR: imitation, then groups.
RECTIFIED = ('sft', 'gft_no_gal', 'gft', 'gft_no_dcr')
# Those of which a figure shows the way, not only the end.
CURVES = ('sft', 'gft', 'grpo', 'gft_no_dcr', 'gft_no_gal')
# Family -> its arms that give many answers.
PASSES = {
  'methods': ('sft', 'sft_mix', 'grpo', 'gft'),
  'hesitant': tuple(f'hesitant_{recipe}' for recipe in RECTIFIED),
  'controls': tuple(
    f'{style}_{recipe}'
    for style in ('repeating', 'guessing')
    for recipe in ('sft', 'gft_no_gal')
  ),
}
# Where the dynamic coefficient might matter more than in the paper's setting.
UPDATES = ('optimizer.mini_batches=4',)
FAST = ('optimizer.learning_rate=1e-3',)
UNCLIPPED = ('optimizer.clip_norm=0',)
# Experts other than the terse one need as much room as a teacher.
VERBOSE = ('data.path=arithmetic/verbose', 'data.max_response=40')
HESITANT = ('data.path=arithmetic/hesitant', 'data.max_response=40')


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', required=True, help='where the runs live')
  parser.add_argument('--scale', default='embedded', choices=SCALES)
  parser.add_argument(
    '--seeds',
    nargs='+',
    action='extend',
    type=int,
    help='by default 0 1 2',
  )
  parser.add_argument('--out', help='where the summary goes')
  parser.add_argument(
    '--draw', action='store_true', help='only draw: run nothing'
  )
  parser.add_argument(
    '--svg', action='store_true', help='an SVG of each figure too'
  )
  command.add_set(
    parser, 'overrides a setting of every run, where no stage has its own'
  )
  options = parser.parse_args(arguments)

  def work():
    from figures import summary

    workdir = pathlib.Path(options.workdir)
    out = pathlib.Path(options.out or workdir / 'summary')
    command.check_writable('--out', out)
    seeds = list(dict.fromkeys(options.seeds or [0, 1, 2]))
    plans = {
      seed: plan(workdir / str(seed), SCALES[options.scale], seed, options.set)
      for seed in seeds
    }
    runs = [run for runs in plans.values() for run in runs]
    for run in runs:
      check(run, must_be_done=options.draw)
    if not options.draw:
      for run in runs:
        perform(run)
    found = summary.read(
      {seed: [run.folder for run in runs] for seed, runs in plans.items()},
      {seed: workdir / str(seed) / 'answers' for seed in seeds},
    )
    words = ['python', 'experiments/reproduce.py', '--workdir', 'WORKDIR']
    words += ['--scale', options.scale, '--seeds', *map(str, seeds)]
    words += ['--set', *options.set] if options.set else []
    about = {'command': shlex.join(words), 'seeds': ', '.join(map(str, seeds))}
    about |= provenance(runs)
    summary.write(out, found, about, svg=options.svg)
    print(f'{out}/README.md')

  return command.run(work)


class Run(NamedTuple):
  """One run directory of a seed.

  Attributes:
    folder: where it lives.
    config: its settings; model.path is there once the base policy is.
    answers: arms that give many answers, and how many.
  """

  folder: pathlib.Path
  config: Config
  answers: dict[str, int]


def families(scale: Scale) -> dict[str, tuple[Stage, ...]]:
  """Name of a run -> its stages; the first start from the base policy."""

  from gft_jax import arms

  def arm(recipe, name='', start='', more: Iterable[str] = ()):
    shared, (stage,) = arms.read_arms([f'embedded/{recipe}'], [])
    stage = arms.limited(shared, stage, arms.ArmBudget('prompts'))
    return Stage(
      name or recipe,
      start,
      stage.objective,
      scale.steps,
      (*stage.overrides, *more),
    )

  def group(recipe, demonstrations, suffix=''):
    name = f'group_{demonstrations}_{8 - demonstrations}{suffix}'
    more = (
      f'group.experts={min(demonstrations, 1)}',
      f'group.teachers={max(demonstrations - 1, 0)}',
      f'group.samples={8 - demonstrations}',
      # As many prompts in any composition.
      f'data.batch_size={embedded.PROMPTS}',
    )
    return arm(recipe, name, more=more)

  curve = (f'eval.every={scale.steps // 5}',)
  return {
    'methods': (
      *(arm(m, more=curve if m in CURVES else ()) for m in METHODS),
      arm('grpo', 'grpo_2', 'grpo', curve),
      arm('grpo', 'grpo_3', 'grpo_2', curve),
      arm('grpo', 'sft_grpo', 'sft', curve),
      arm('gft', 'sft_gft', 'sft', curve),
      arm('grpo', 'gft_grpo', 'gft', curve),
      arm('grpo', 'sft_gft_grpo', 'sft_gft', curve),
      # As many steps as the chains that they are compared with.
      arm('sft', 'sft_2', 'sft', curve),
      arm('grpo', 'sft_grpo_2', 'sft_grpo', curve),
    ),
    'thresholds': tuple(
      arm('gft', f'tau_{tau}', more=(f'loss.tau={tau}',))
      for tau in (0.1, 0.3, 0.5, 0.9)
    ),
    'groups': tuple(group('gft', count) for count in (8, 6, 2, 0)),
    'regimes': (
      *(group('gft_no_dcr', count, '_no_dcr') for count in (8, 6)),
      arm('gft', 'updates', more=UPDATES),
      arm('gft_no_dcr', 'updates_no_dcr', more=UPDATES),
    ),
    # Each alone, for it may diverge.
    'fast': (
      arm('gft', 'fast', more=FAST),
      arm('gft_no_dcr', 'fast_no_dcr', more=FAST),
    ),
    'unclipped': (
      arm('gft', 'unclipped', more=UNCLIPPED),
      arm('gft_no_dcr', 'unclipped_no_dcr', more=UNCLIPPED),
    ),
    'verbose': (
      arm('sft', 'verbose_sft', more=VERBOSE),
      arm('gft', 'verbose_gft', more=VERBOSE),
      arm('grpo', 'verbose_sft_grpo', 'verbose_sft'),
    ),
    'hesitant': tuple(
      arm(recipe, f'hesitant_{recipe}', more=HESITANT) for recipe in RECTIFIED
    ),
    # The threshold where rectification matters.
    'hesitant_thresholds': tuple(
      arm(
        'gft_no_gal',
        f'hesitant_tau_{tau}',
        more=(*HESITANT, f'loss.tau={tau}'),
      )
      for tau in (0.1, 0.3, 0.5, 0.9)
    ),
    # The two habits of the hesitant expert, each alone.
    'controls': tuple(
      arm(
        name.partition('_')[2],
        name,
        more=(
          f'data.path=arithmetic/{name.partition("_")[0]}',
          'data.max_response=40',
        ),
      )
      for name in PASSES['controls']
    ),
  }


def plan(
  folder: pathlib.Path, scale: Scale, seed: int, assignments: list[str]
) -> list[Run]:
  """The runs of a seed, the base policy first.

  Raises:
    ConfigError: an assignment that the scale, the seeds or the arms decide.
  """
  from gft_jax import arms

  for assignment in assignments:
    name = assignment.partition('=')[0].strip()
    require(
      not any(f'{name}.'.startswith(f'{decided}.') for decided in DECIDED),
      f'--set {assignment}: {name} is decided by the reproduction',
    )
  shared, _ = arms.read_arms(['embedded/gft'], assignments)
  (stage,) = shared.stages
  base = dataclasses.replace(
    shared,
    seed=seed,
    model=dataclasses.replace(shared.model, architecture=scale.architecture),
    log=dataclasses.replace(shared.log, progress=False, tensorboard=False),
    stages=(dataclasses.replace(stage, steps=scale.base_steps),),
  )
  runs = [Run(folder / 'base', base, {})]
  for name, stages in families(scale).items():
    config = dataclasses.replace(
      base,
      model=dataclasses.replace(
        base.model, path=str(folder / 'base' / 'model')
      ),
      eval=dataclasses.replace(base.eval, base='', before=False),
      stages=stages,
    )
    # The many of Table 4, and as many as a share needs.
    many = scale.answers if name == 'methods' else 16
    answers = dict.fromkeys(PASSES.get(name, ()), many)
    if name == 'methods':
      answers['base'] = many
    runs.append(Run(folder / name, config, answers))
  return runs


def check(run: Run, *, must_be_done: bool) -> None:
  """Raises ConfigError for a run begun otherwise, or one that is not done."""
  from gft_jax.run.workdir import check_workdir

  check_workdir(run.folder, run.config)
  require(
    not must_be_done or state_of(run.folder)['done'],
    f'{run.folder} is not finished; run the same command without --draw',
  )


def perform(run: Run) -> None:
  """Trains and asks; what is done is not done again."""
  import jax

  from gft_jax import arms
  from gft_jax.loop import train

  state = state_of(run.folder)
  if state['done']:
    return
  here = environment()
  if here not in state['environments']:
    state['environments'].append(here)
  run.folder.mkdir(parents=True, exist_ok=True)
  keep(run.folder, state)
  started = time.time()
  try:
    if run.folder.name == 'base':
      arms.base_policy(run.config, run.folder)
    else:
      train(run.config, run.folder)
      answer(run)
  except FloatingPointError as error:
    # A result as well; its figures say so.
    print(f'{run.folder}: {error}', flush=True)
  # Seeds share programs, families do not; some hundreds exhaust a process.
  jax.clear_caches()
  keep(run.folder, state | {'done': True})
  print(f'{run.folder}: {time.time() - started:.0f} s', flush=True)


def answer(run: Run) -> None:
  """Many answers of some arms: pass@k, and the share that hesitate."""
  from gft_jax import evaluate
  from gft_jax.evaluation import generations
  from gft_jax.policy import load_policy, restore_stage
  from gft_jax.run.files import write_whole

  policy = None
  for arm, samples in run.answers.items():
    outdir = run.folder.parent / 'answers' / arm
    if outdir.with_suffix('.json').exists():
      continue
    started = time.time()
    asked = dataclasses.replace(
      run.config,
      eval=dataclasses.replace(
        run.config.eval,
        splits=('test', 'ood_length'),
        prompts=64,
        batch_size=8,
        samples=samples,
        ks=tuple(k for k in (1, 4, 16, 64, 128, 256, 1024) if k <= samples),
        reward=WORKED,
        temperature=1.0,
        kl_prompts=0,
      ),
    )
    policy = policy or load_policy(run.config)
    params = policy.params
    if arm != 'base':
      params, _ = restore_stage(policy, run.folder, arm)
    metrics = evaluate.evaluate_policy(asked, outdir, policy, params)
    kept = generations.read_answers(outdir / 'generations' / 'test.jsonl')
    metrics['hesitates'] = hesitating(kept.prompts, kept.responses)
    metrics['seconds'] = time.time() - started
    write_whole(outdir.with_suffix('.json'), json.dumps(metrics, indent=1))


def hesitating(
  prompts: Iterable[str], responses: Iterable[Iterable[str]]
) -> float:
  """The share of answers that write more numbers than there are steps.

  Args:
    prompts: chains without products.
    responses: answers to each.
  """
  found = [
    len(re.findall('[,:;]', text)) > len(re.findall('[+-]', prompt)) - 1
    for prompt, texts in zip(prompts, responses, strict=True)
    for text in texts
  ]
  return sum(found) / len(found)


def state_of(folder: pathlib.Path) -> dict[str, Any]:
  """Whether a run is done, and where it ran."""
  path = folder / STATE
  if not path.exists():
    return {'done': False, 'environments': []}
  return json.loads(path.read_text())


def keep(folder: pathlib.Path, state: dict[str, Any]) -> None:
  from gft_jax.run.files import write_whole

  write_whole(folder / STATE, json.dumps(state, indent=1))


def environment() -> dict[str, str]:
  """Machine, versions and commit of this process."""
  import jax

  try:
    commit = subprocess.run(
      ['git', 'describe', '--always', '--dirty'],
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
      check=False,
    ).stdout.strip()
  except FileNotFoundError:  # no git here
    commit = ''
  machine = f'{os.cpu_count()} cores, {platform.machine()}'
  if jax.default_backend() != 'cpu':
    machine += f', {jax.device_count()} x {jax.devices()[0].device_kind}'
  return {
    'machine': machine,
    'software': f'jax {jax.__version__}, Python {platform.python_version()}',
    'commit': commit or 'unknown',
  }


def provenance(runs: list[Run]) -> dict[str, str]:
  """Where all of it ran, and the minutes of it."""
  from gft_jax.report.run import goodput, read_run

  seconds = 0.0
  for run in runs:
    spent = goodput(read_run(run.folder))
    seconds += sum(spent.values()) - spent.get('down', 0)
  folders = dict.fromkeys(run.folder.parent / 'answers' for run in runs)
  for path in (path for folder in folders for path in folder.glob('*.json')):
    seconds += json.loads(path.read_text()).get('seconds', 0)
  found = [e for run in runs for e in state_of(run.folder)['environments']]
  return {
    name: '; '.join(dict.fromkeys(place[name] for place in found))
    for name in ('machine', 'software', 'commit')
  } | {'minutes': f'{seconds / 60:.0f}', 'drawn at': environment()['commit']}


if __name__ == '__main__':
  sys.exit(main())
