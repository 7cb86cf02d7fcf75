"""Evaluation outside of a run: held-out splits and public benchmarks."""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TypeAlias

from gft_jax import data
from gft_jax.config import (
  Config,
  ConfigError,
  RewardConfig,
  overridden,
  require,
)
from gft_jax.data import benchmarks
from gft_jax.engine import Engine, open_engine
from gft_jax.evaluation import benchmark, generations
from gft_jax.evaluation.benchmark import Questions, ask_benchmark
from gft_jax.evaluation.held_out import HeldOutEvaluation
from gft_jax.parallel.mesh import (
  check_rows,
  prompt_holders,
  warn_of_idle_devices,
)
from gft_jax.plan import check_lengths, held_out_of, loader_of, warn_of_losses
from gft_jax.policy import Policy
from gft_jax.report import tables
from gft_jax.report.run import restated
from gft_jax.rewards.grader import Grader, evaluation_reward, wanted_by
from gft_jax.run.workdir import coefficients_file
from gft_jax.training import objectives
from gft_jax.types import Numbers, Params

# Rows of a public benchmark: prompt, answer.
Rows: TypeAlias = Sequence[Mapping[str, str]]

# Answers that are written together, where nobody sets eval.batch_size.
ROWS = 128


def evaluate_policy(
  config: Config,
  outdir: str | pathlib.Path,
  policy: Policy,
  params: Params,
) -> Numbers:
  """Evaluates parameters by the top-level settings of `config`.

  KL is to `policy.params`. What the figures need goes to `outdir`/report/, the
  answers to `outdir`/generations/.
  """
  gft = objectives.OBJECTIVES['gft']  # whose coefficients the figure shows
  config = dataclasses.replace(
    config, loss=objectives.resolve(config.loss, gft)
  )
  check_rows('eval.batch_size', config.eval.batch_size, config.mesh)
  check_lengths(
    config, config.data.max_prompt, policy.model.architecture.max_positions
  )
  outdir = pathlib.Path(outdir)
  held_out = held_out_of(loader_of(config, policy), config, config)
  # It is never resumed: another evaluation's time-outs are none of its own.
  # Nothing is graded where there are no splits.
  rewards = [evaluation_reward(config)] if config.eval.splits else []
  with engine_of(config, policy, outdir, rewards, resumed=False) as engine:
    warn_of_losses(held_out.splits.values())
    return HeldOutEvaluation(engine, params, config, 'evaluation').measure(
      held_out,
      policy.params,
      figures=coefficients_file(outdir, 'evaluation'),
      generations=outdir / 'generations',
    )


def questions_of(
  config: Config, policy: Policy, name: str, rows: Sequence[Mapping[str, str]]
) -> Questions:
  """The rows of a public benchmark as the policy is asked them.

  See benchmark.questions_of.
  """
  unknown = data.unknown_id(policy.tokenizer)
  encoded = data.encode_prompts(
    [row['prompt'] for row in rows], config.data, policy.tokenizer
  )
  return benchmark.questions_of(
    name,
    rows,
    [[] if unknown in ids else ids for ids in encoded],
    # The answer needs a position too.
    min(config.data.max_prompt, policy.model.architecture.max_positions - 1),
    config.data.max_dropped,
  )


def evaluate_benchmark(
  config: Config,
  outdir: str | pathlib.Path,
  policy: Policy,
  params: Params,
  questions: Questions,
) -> Numbers:
  """Asks a public benchmark, or goes on; see benchmark.ask_benchmark.

  Args:
    config: the settings of this benchmark.
    outdir: the answers go to its folder generations/.
    policy: its model and tokenizer.
    params: what answers.
    questions: of `questions_of`.

  Returns:
    'eval/NAME/...' -> number.
  """
  outdir = pathlib.Path(outdir)
  rewards = [evaluation_reward(config)]
  with engine_of(config, policy, outdir, rewards) as engine:
    metrics = ask_benchmark(
      engine, params, questions, config, outdir / 'generations'
    )
  return {f'eval/{questions.name}/{k}': v for k, v in metrics.items()}


def read_benchmarks(
  names: Sequence[str], folder: str | pathlib.Path, limit: int | None = None
) -> dict[str, Rows]:
  """Name -> rows of public benchmarks.

  Args:
    names: as `named_benchmarks` gives them; ['all']: every one whose file is
      there.
    folder: of NAME.jsonl and NAME.parquet.
    limit: the first rows of each alone.

  Raises:
    ConfigError: a file is absent, or a row of it makes no question.
  """
  if names == ['all']:
    known = benchmarks.BENCHMARKS
    names = [n for n in known if benchmarks.find(folder, n).is_file()]
    require(
      bool(names),
      f'--benchmarks all: none of {", ".join(known)} (.jsonl or .parquet) is'
      f' in --data {folder}',
    )
  return {
    name: benchmarks.rows(name, benchmarks.find(folder, name))[:limit]
    for name in names
  }


def named_benchmarks(text: str | None) -> list[str]:
  """'amc,math500' -> the names that tables use; 'all' stays, None is none.

  Raises:
    ConfigError: it names none, or one that is not known.
  """
  if text == '':
    raise ConfigError("--benchmarks '' names none")
  names = text.split(',') if text else []
  return names if names == ['all'] else [*map(benchmarks.canonical, names)]


def for_benchmarks(config: Config, assignments: Sequence[str]) -> Config:
  """Settings that suit questions of any length; what the user set stands."""
  devices = math.lcm(*prompt_holders(config.mesh))
  batch = min(32, ROWS // config.eval.samples) // devices * devices
  defaults = [
    *('data.max_prompt=2048', 'eval.max_response=1024', 'reward.workers=2'),
    f'eval.batch_size={max(batch, devices)}',
  ]
  config = overridden(config, [*defaults, *assignments])
  check_rows('eval.batch_size', config.eval.batch_size, config.mesh)
  return config


def for_one(config: Config, assignments: Sequence[str], name: str) -> Config:
  """The settings of one benchmark: its own instruction and reward, likewise."""
  own = benchmarks.BENCHMARKS[name]
  settings = [
    f'data.instruction={config.data.instruction or own.instruction}',
    *(f'reward.function={own.reward}', 'eval.reward='),
  ]
  return overridden(config, [*settings, *assignments])


def ask_benchmarks(
  config: Config,
  assignments: Sequence[str],
  outdir: pathlib.Path,
  policy: Policy,
  params: Params,
  rows: Mapping[str, Rows],
  limit: int | None = None,
) -> Numbers:
  """Asks one benchmark after the other; what is finished is on disk.

  `outdir` gets generations/, settings.json, evaluation.json, table.md and
  table.tex. What it has of other benchmarks stays in its tables, and what it has
  of held-out splits stays out of them.

  Args:
    config: the settings before those that suit benchmarks.
    assignments: what the user set, which stands.
    outdir: a folder; one that was begun goes on under the same settings.
    policy: its model and tokenizer.
    params: what answers.
    rows: of `read_benchmarks`.
    limit: under which the rows were read.

  Returns:
    'eval/NAME/...' -> number, of all benchmarks in `outdir`.

  Raises:
    ConfigError: a mistake in any of them, before the first is asked; or
      `outdir` was begun under other settings.
  """
  config = for_benchmarks(config, assignments)
  asked = {name: for_one(config, assignments, name) for name in rows}
  questions = {
    name: questions_of(asked[name], policy, name, rows[name]) for name in rows
  }
  facts = {
    'weights': generations.fingerprint(params),
    '--limit': limit or 'none',
  } | {f'questions of {name}': digest(rows[name], asked[name]) for name in rows}
  for name, one in asked.items():  # A mistake in a reward is no beginning.
    reward = evaluation_reward(one)
    Grader(reward).close()
    wanted_by(reward).names([], f'the benchmark {name}')
  generations.check_settings(outdir, config, facts)
  file = outdir / 'evaluation.json'
  metrics = metrics_of_benchmarks(file)
  others = {k: v for k, v in read_metrics(file).items() if k not in metrics}
  for name in rows:
    metrics |= evaluate_benchmark(
      asked[name], outdir, policy, params, questions[name]
    )
    file.write_text(json.dumps(others | metrics, indent=1))
    tables.write(outdir / 'table', tables.benchmark_table(metrics))
  return metrics


def read_metrics(file: pathlib.Path) -> Numbers:
  """What an evaluation.json holds; {} where there is none."""
  return restated(json.loads(file.read_text())) if file.exists() else {}


def metrics_of_benchmarks(file: pathlib.Path) -> Numbers:
  """What an evaluation.json says of public benchmarks."""
  return {
    name: value
    for name, value in read_metrics(file).items()
    if name.split('/')[1] in benchmarks.BENCHMARKS
  }


def digest(rows: Rows, config: Config) -> str:
  """Of the questions and of what their benchmark alone decides."""
  rule = evaluation_reward(config).function
  asked: list[object] = [rows, config.data.instruction, rule]
  if config.data.system:  # Else as before there was this setting.
    asked.append(config.data.system)
  text = json.dumps(asked)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def engine_of(
  config: Config,
  policy: Policy,
  outdir: pathlib.Path,
  rewards: Iterable[RewardConfig],
  *,
  resumed: bool = True,
) -> Generator[Engine, None, None]:
  """The engine with its graders, outside of a run.

  Where it can be resumed, answers that hit the time limit are journalled in
  `outdir`.
  """
  timeouts = outdir / 'timeouts.jsonl' if resumed else None
  with open_engine(config, policy, rewards, timeouts) as engine:
    warn_of_idle_devices(config.mesh)
    outdir.mkdir(parents=True, exist_ok=True)
    yield engine
