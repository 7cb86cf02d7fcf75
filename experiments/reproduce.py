"""Every figure and table of the paper, from runs on the embedded task.

  python experiments/reproduce.py --workdir runs/reproduction
  python experiments/reproduce.py --workdir runs/small --scale small  # a GPU

For each seed: a base policy from scratch, every method of Table 1 from it, the
ablations, pipelines, sweeps and both styles of expert, then many answers for
pass@k. Start it again and it goes on where it stopped; more seeds may be added.

Writes to --out (by default WORKDIR/summary) README.md and index.html with every
figure, table and verdict, results.json with the numbers, a PNG and an SVG of
each figure. Every run has its own report: WORKDIR/SEED/FAMILY/report/index.html.
"""

import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

import command
import compare

from gft_jax.config import Architecture, Config, Stage, override

RECIPES = pathlib.Path(__file__).parent / 'configs' / 'embedded'
WORKED = 'gft_jax.data.arithmetic:worked'


class Scale(NamedTuple):
  """How large a reproduction is.

  Attributes:
    architecture: of the decoder.
    base_steps: of pre-training.
    steps: of each stage.
    prompts: B of the group methods; imitation sees ten times as many.
    answers: per prompt, for pass@k.
    note: what it takes.
  """

  architecture: Architecture
  base_steps: int
  steps: int
  prompts: int
  answers: int
  note: str


SCALES = {
  'embedded': Scale(Architecture(), 2000, 80, 16, 256, '2 CPU cores'),
  'small': Scale(
    Architecture(width=256, layers=6, heads=8, head_size=32, mlp_width=704),
    4000,
    200,
    64,
    1024,
    'one GPU; never run',
  ),
}
METHODS = (
  *('sft', 'gft', 'grpo', 'gft_no_dcr', 'gft_no_gal', 'sft_mix', 'asft'),
  *('psft', 'dft', 'luffy', 'chord_phi', 'gft_no_mix'),
)
# Those of which a figure shows the way, not only the end.
CURVES = ('sft', 'gft', 'grpo', 'gft_no_dcr', 'gft_no_gal')
PASSES = ('sft', 'sft_mix', 'grpo', 'gft')
# Where the dynamic coefficient might matter more than in the paper's setting.
REGIMES = {
  'hot': ('optimizer.learning_rate=1e-3', 'optimizer.clip_norm=0'),
  'updates': ('optimizer.mini_batches=4',),
}
# Experts other than the terse one need as much room as a teacher.
VERBOSE = ('data.path=arithmetic/verbose', 'data.max_response=40')
HESITANT = ('data.path=arithmetic/hesitant', 'data.max_response=40')


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  parser.add_argument('--workdir', required=True, help='where the runs live')
  parser.add_argument('--scale', default='embedded', choices=SCALES)
  parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
  parser.add_argument('--out', help='where the summary goes')
  parser.add_argument(
    '--draw', action='store_true', help='only draw: run nothing'
  )
  command.add_set(parser, 'overrides a setting of every run')
  options = parser.parse_args(arguments)

  def work():
    import figures

    workdir = pathlib.Path(options.workdir)
    out = pathlib.Path(options.out or workdir / 'summary')
    command.check_writable('--out', out)
    scale = SCALES[options.scale]
    if not options.draw:
      for seed in options.seeds:
        run_seed(workdir, scale, seed, options.set)
    found = figures.read(
      {seed: folders(workdir, scale, seed) for seed in options.seeds},
      {seed: workdir / str(seed) / 'answers' for seed in options.seeds},
    )
    about = provenance(workdir, options.scale, options.seeds, options.set)
    figures.write(out, found, about)
    print(f'{out}/README.md')

  return command.run(work)


def families(scale: Scale) -> dict[str, tuple[Stage, ...]]:
  """Name of a run -> its stages, all of which start from the base policy."""

  def arm(recipe, name='', start='', more: Iterable[str] = ()):
    shared, (stage,) = compare.read_arms([str(RECIPES / f'{recipe}.py')], [])
    shared = override(shared, f'data.batch_size={scale.prompts}')
    stage = compare.limited(shared, stage, 'prompts', 0)
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
      f'data.batch_size={scale.prompts}',
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
    ),
    'thresholds': tuple(
      arm('gft', f'tau_{tau}', more=(f'loss.tau={tau}',))
      for tau in (0.1, 0.3, 0.5, 0.9)
    ),
    'groups': tuple(group('gft', count) for count in (8, 6, 2, 0)),
    'regimes': (
      *(group('gft_no_dcr', count, '_no_dcr') for count in (8, 6)),
      *(
        arm(recipe, recipe.replace('gft', regime), more=more)
        for regime, more in REGIMES.items()
        for recipe in ('gft', 'gft_no_dcr')
      ),
    ),
    'verbose': (
      arm('sft', 'verbose_sft', more=VERBOSE),
      arm('gft', 'verbose_gft', more=VERBOSE),
      arm('grpo', 'verbose_sft_grpo', 'verbose_sft'),
    ),
    'hesitant': tuple(
      arm(recipe, f'hesitant_{recipe}', more=HESITANT)
      for recipe in ('sft', 'gft_no_gal', 'gft', 'gft_no_dcr')
    ),
  }


def base_config(scale: Scale, seed: int, assignments: list[str]) -> Config:
  """Pre-training of the base policy of a seed."""
  shared, _ = compare.read_arms([str(RECIPES / 'gft.py')], assignments)
  (stage,) = shared.stages
  return dataclasses.replace(
    shared,
    seed=seed,
    model=dataclasses.replace(shared.model, architecture=scale.architecture),
    data=dataclasses.replace(shared.data, batch_size=scale.prompts),
    log=dataclasses.replace(shared.log, progress=False, tensorboard=False),
    stages=(dataclasses.replace(stage, steps=scale.base_steps),),
  )


def family_config(base: Config, folder: str, stages: tuple[Stage, ...]):
  """A run of these stages from the base policy."""
  return dataclasses.replace(
    base,
    model=dataclasses.replace(base.model, path=folder),
    eval=dataclasses.replace(base.eval, base='', before=False),
    stages=stages,
  )


def run_seed(
  workdir: pathlib.Path, scale: Scale, seed: int, assignments: list[str]
) -> None:
  """Everything of one seed; what is done is not done again."""
  import jax

  from gft_jax import train

  config = base_config(scale, seed, assignments)
  folder = workdir / str(seed)
  path, _ = compare.base_policy(config, folder / 'base')
  for name, stages in families(scale).items():
    started = time.time()
    family = family_config(config, path, stages)
    train.train(family, folder / name)
    if name == 'methods':
      answer(family, scale, folder)
    # Seeds share programs, families do not; some hundreds exhaust a process.
    jax.clear_caches()
    took = time.time() - started
    print(f'seed {seed}, {name}: {took:.0f} s', flush=True)


def answer(config: Config, scale: Scale, folder: pathlib.Path) -> None:
  """Many answers of the base policy and of some arms, for pass@k."""
  from gft_jax import train
  from gft_jax.generations import write_whole

  ks = tuple(k for k in (1, 4, 16, 64, 256, 1024) if k <= scale.answers)
  asked = dataclasses.replace(
    config,
    eval=dataclasses.replace(
      config.eval,
      splits=('test', 'ood_length'),
      prompts=64,
      batch_size=8,
      samples=scale.answers,
      ks=ks,
      reward=WORKED,
      temperature=1.0,
      kl_prompts=0,
    ),
  )
  policy = None
  for arm in ('base', *PASSES):
    path = folder / 'answers' / f'{arm}.json'
    if path.exists():
      continue
    policy = policy or train.load_policy(config)
    params = policy.params
    if arm != 'base':
      params, _ = train.result_of(policy, folder / 'methods', arm)
    outdir = folder / 'answers' / arm
    metrics = train.evaluate_policy(asked, outdir, policy, params)
    write_whole(path, json.dumps(metrics, indent=1))


def folders(
  workdir: pathlib.Path, scale: Scale, seed: int
) -> list[pathlib.Path]:
  return [workdir / str(seed) / name for name in ('base', *families(scale))]


def provenance(
  workdir: pathlib.Path, scale: str, seeds: list[int], assignments: list[str]
) -> dict[str, str]:
  """Command, machine, versions, minutes and commit."""
  import jax

  from gft_jax import report

  seconds = 0.0
  for seed in seeds:
    for folder in folders(workdir, SCALES[scale], seed):
      spent = report.goodput(report.read_run(folder))
      seconds += sum(spent.values()) - spent.get('down', 0)
  commit = subprocess.run(
    ['git', 'describe', '--always', '--dirty'],
    cwd=pathlib.Path(__file__).parent,
    capture_output=True,
    text=True,
    check=False,
  ).stdout.strip()
  machine = f'{os.cpu_count()} cores, {platform.machine()}'
  if jax.default_backend() != 'cpu':
    machine += f', {jax.device_count()} x {jax.devices()[0].device_kind}'
  words = ['python experiments/reproduce.py --workdir WORKDIR --scale', scale]
  words += ['--seeds', *map(str, seeds)]
  words += ['--set', *assignments] if assignments else []
  return {
    'command': ' '.join(words),
    'scale': f'{scale} ({SCALES[scale].note})',
    'seeds': ', '.join(map(str, seeds)),
    'machine': machine,
    'software': f'jax {jax.__version__}, Python {platform.python_version()}',
    'minutes of the runs, without those of pass@k': f'{seconds / 60:.0f}',
    'commit': commit or 'unknown',
  }


if __name__ == '__main__':
  sys.exit(main())
