"""Evaluation outside of a run: held-out splits and public benchmarks."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Generator, Mapping, Sequence

from gft_jax import data
from gft_jax.config import Config
from gft_jax.engine import Engine, open_engine
from gft_jax.evaluation import benchmark
from gft_jax.evaluation.benchmark import Questions, ask_benchmark
from gft_jax.evaluation.held_out import HeldOutEvaluation
from gft_jax.parallel.mesh import check_rows
from gft_jax.plan import check_lengths, held_out_of, loader_of
from gft_jax.policy import Policy
from gft_jax.rewards.grader import evaluation_reward
from gft_jax.run.workdir import coefficients_file
from gft_jax.training import objectives
from gft_jax.types import Numbers, Params


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
  held_out = held_out_of(loader_of(config, policy), config, config.eval.splits)
  outdir = pathlib.Path(outdir)
  # It is never resumed: another evaluation's time-outs are none of its own.
  with engine_of(config, policy, outdir, resumed=False) as engine:
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
  with engine_of(config, policy, outdir) as engine:
    metrics = ask_benchmark(
      engine, params, questions, config, outdir / 'generations'
    )
  return {f'eval/{questions.name}/{k}': v for k, v in metrics.items()}


@contextlib.contextmanager
def engine_of(
  config: Config, policy: Policy, outdir: pathlib.Path, *, resumed: bool = True
) -> Generator[Engine, None, None]:
  """The engine with the top-level reward, outside of a run.

  Where it can be resumed, answers that hit the time limit are journalled in
  `outdir`.
  """
  rewards = {evaluation_reward(config)}
  if config.reward.function:
    rewards.add(config.reward)
  timeouts = outdir / 'timeouts.jsonl' if resumed else None
  with open_engine(config, policy, rewards, timeouts) as engine:
    outdir.mkdir(parents=True, exist_ok=True)
    yield engine
