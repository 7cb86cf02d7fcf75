"""train(config, workdir): stages, the loop, and the one place with jit.

A run is a tree of stages. A stage is a generator of steps,

  prompts -> sampled answers -> scores -> groups -> update,

and one consumer at the edge that writes metrics, evaluates and saves. The
generator dispatches step n before the consumer reads the metrics of n - 1.

Everything random is a function of (seed, stream, step), where the step counts
from the root of the tree: sibling stages see the same prompts and the same
bits. With the data position in the checkpoint, a resumed run repeats the
uninterrupted one bit for bit.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.training.train_state import TrainState

from gft_jax import (
  checkpoint,
  data,
  evaluate,
  groups,
  objectives,
  parallel,
  report,
  rewards,
  sampler,
  train_step,
  writers,
)
from gft_jax.batch import GroupBatch, Prompts, Responses
from gft_jax.config import (
  Config,
  ConfigError,
  GroupConfig,
  RewardConfig,
  SamplerConfig,
  Stage,
  differences,
  for_stage,
  from_dict,
  to_dict,
)
from gft_jax.data import arithmetic
from gft_jax.models import huggingface, transformer
from gft_jax.ops.masking import WeightedMean
from gft_jax.ops.rectification import dynamic_coefficient
from gft_jax.optimizer import make_optimizer, make_schedule

Record = dict[str, Any]

# Named random streams; see `key_of`.
STREAMS = {'init': 0, 'sample': 1, 'evaluate': 2, 'drift': 3}

# The compiled programs. Models, objectives and settings are static, so equal
# settings share one program over all stages.
sample = jax.jit(
  sampler.sample_groups,
  static_argnames=(
    'model',
    'group_size',
    'max_tokens',
    'temperature',
    'top_k',
    'top_p',
    'min_p',
    'stop_ids',
  ),
)
token_logprobs = jax.jit(
  train_step.token_logprobs,
  static_argnames=('model', 'chunk', 'temperature'),
)
drift = jax.jit(evaluate.drift, static_argnames=('model', 'chunk'))


@functools.partial(
  jax.jit,
  static_argnames=('model', 'objective', 'settings', 'options'),
  donate_argnames='state',
)
def update(state, batch, *, model, objective, settings, options):
  step = train_step.make_train_step(model, objective, settings, **dict(options))
  return step(state, batch)


# One optimizer object per setting: it is part of a train state's identity.
optimizer_of = functools.cache(make_optimizer)

FLOAT32_MAX = float(np.finfo(np.float32).max)

# Evaluation looks at own answers, and at experts' alone.
OWN = GroupConfig(experts=0, teachers=0, samples=1)
EXPERT_ONLY = GroupConfig(experts=1, teachers=0, samples=0)


class NonFiniteError(FloatingPointError):
  """Loss or gradient is not finite; the message names stage and step."""


class Policy(NamedTuple):
  """What is trained.

  Attributes:
    model: a Flax module with the entrances of models.transformer.
    params: where the first stage starts, a plain pytree.
    tokenizer: a transformers tokenizer with an EOS.
    stop_ids: tokens that end an answer: EOS and sampler.stop_ids.
  """

  model: Any
  params: Any
  tokenizer: Any
  stop_ids: tuple[int, ...]


class Job(NamedTuple):
  """One stage, resolved.

  Attributes:
    stage: its node in the tree.
    config: the settings under the stage's overrides.
    objective: its row of the table.
    dataset: prompts and given answers to train on.
    held_out: split -> the dataset whose first rows are evaluated.
    demonstrations: held-out expert answers, or None where there are none.
    first_step: steps of all ancestors.
    total_updates: optimizer updates of the stage.
  """

  stage: Stage
  config: Config
  objective: objectives.Objective
  dataset: data.Dataset
  held_out: dict[str, data.Dataset]
  demonstrations: data.Dataset | None
  first_step: int
  total_updates: int


def train(
  config: Config, workdir: str | pathlib.Path
) -> dict[str, dict[str, float]]:
  """Runs, or resumes, every stage.

  Afterwards `workdir` holds config.json, metrics.jsonl, checkpoints/ and
  report/. A finished stage is not run again.

  Returns:
    The last evaluation of each stage, by stage.

  Raises:
    ConfigError: a setting that cannot work, or a workdir begun under another
      config. Nothing has been written then.
    NonFiniteError: the last good checkpoint stands.
  """
  workdir = pathlib.Path(workdir)
  check_workdir(workdir, config)
  mesh = parallel.make_mesh(config.mesh)
  policy = load_policy(config)
  jobs = plan(config, policy)
  with contextlib.ExitStack() as stack:
    graders = {
      settings: stack.enter_context(rewards.Grader(settings))
      for settings in {job.config.reward for job in jobs}
    }
    _claim(workdir, config)
    writer = stack.enter_context(
      contextlib.closing(writers.make_writer(workdir, config.log))
    )
    loop = Loop(config, workdir, mesh, policy, graders, writer)
    results = {job.stage.name: loop.run(job) for job in jobs}
  report.write_report(workdir)
  return results


def result_of(
  policy: Policy, workdir: str | pathlib.Path, stage: str
) -> tuple[Any, int]:
  """Parameters that a stage has reached, and its step.

  Raises:
    ConfigError: the stage has no checkpoint that verifies.
  """
  directory = _stage_directory(pathlib.Path(workdir), stage)
  try:
    return checkpoint.restore_params(directory, policy.params)
  except FileNotFoundError as error:
    raise ConfigError(str(error)) from None


def evaluate_policy(
  config: Config,
  outdir: str | pathlib.Path,
  policy: Policy,
  params: Any,
) -> dict[str, float]:
  """Evaluates parameters by the top-level settings of `config`.

  KL is to `policy.params`. What the figures need goes to `outdir`/report/.
  """
  config = dataclasses.replace(
    config,
    eval=dataclasses.replace(config.eval, base=''),
    stages=(Stage('evaluation', '', 'gft', 1),),
  )
  outdir = pathlib.Path(outdir)
  (job,) = plan(config, policy)
  mesh = parallel.make_mesh(config.mesh)
  with rewards.Grader(config.reward) as grader:
    outdir.mkdir(parents=True, exist_ok=True)
    graders = {config.reward: grader}
    loop = Loop(config, outdir, mesh, policy, graders, writers.Writer())
    record = loop.evaluate(job, params, 0)
  return {k: v for k, v in record.items() if k.startswith('eval/')}


def load_policy(config: Config) -> Policy:
  """The model of the config: a Hugging Face folder, or fresh parameters."""
  settings = config.model
  dtypes = {
    'dtype': settings.dtype,
    'param_dtype': settings.param_dtype,
    'remat': settings.remat,
  }
  if settings.path:
    model, params, tokenizer = huggingface.load(settings.path, **dtypes)
  else:
    if settings.tokenizer:
      tokenizer = huggingface.load_tokenizer(settings.tokenizer)
    else:
      tokenizer = arithmetic.tokenizer()
    architecture = settings.architecture
    if not architecture.vocab_size:
      architecture = dataclasses.replace(
        architecture, vocab_size=len(tokenizer)
      )
    model = transformer.Transformer(architecture, **dtypes)
    params = jax.jit(model.init)(
      key_of(config.seed, 'init', 0),
      jnp.zeros((1, 1), jnp.int32),
      jnp.ones(1, jnp.int32),
    )['params']
  stop_ids = (tokenizer.eos_token_id, *config.sampler.stop_ids)
  return Policy(model, params, tokenizer, stop_ids)


def key_of(seed: int, stream: str, step: int) -> jax.Array:
  """The key of (seed, stream, step); no key is ever stored."""
  root = jax.random.key(seed, impl='threefry2x32')
  return jax.random.fold_in(jax.random.fold_in(root, STREAMS[stream]), step)


def plan(config: Config, policy: Policy) -> list[Job]:
  """Resolves every stage, so that a mistake in the last stops the first."""

  @functools.cache
  def tokenised(settings, group, split):
    return data.load(settings, group, policy.tokenizer, split, config.seed)

  def load(settings, group, split):
    # What a split holds does not depend on these: stages share it.
    settings = dataclasses.replace(settings, batch_size=1, split='')
    return tokenised(settings, group, split)

  jobs: dict[str, Job] = {}
  for stage in config.stages:
    settings = for_stage(config, stage)
    for name in ('model', 'mesh', 'seed', 'log'):
      if getattr(settings, name) != getattr(config, name):
        raise ConfigError(
          f'stages.{stage.name}.overrides: {name} belongs to the whole run'
        )
    parallel.check_divisible(
      settings.data.batch_size,
      settings.mesh,
      parts=settings.optimizer.mini_batches * settings.optimizer.micro_batches,
    )
    _check_lengths(settings, policy.model.architecture.max_positions)
    parent = jobs.get(stage.start)
    first_step = parent.first_step + parent.stage.steps if parent else 0
    splits = settings.eval.splits
    jobs[stage.name] = Job(
      stage=stage,
      config=settings,
      objective=objectives.choose(stage.objective, settings.group),
      dataset=load(settings.data, settings.group, settings.data.split),
      held_out={s: load(config.data, OWN, s) for s in splits},
      demonstrations=load(config.data, EXPERT_ONLY, splits[0])
      if splits
      else None,
      first_step=first_step,
      total_updates=stage.steps * settings.optimizer.mini_batches,
    )
  base = config.eval.base
  if base and base not in jobs:
    raise ConfigError(
      f'eval.base={base!r} is not a stage; stages: {", ".join(jobs)}'
    )
  return list(jobs.values())


def _check_lengths(config: Config, max_positions: int) -> None:
  longest = config.data.max_prompt + max(
    config.data.max_response, config.eval.max_response
  )
  if longest > max_positions:
    raise ConfigError(
      f'data.max_prompt={config.data.max_prompt} and the longest response take'
      f' {longest} tokens, but the model has max_positions={max_positions}'
    )


def check_workdir(workdir: pathlib.Path, config: Config) -> None:
  """Refuses a workdir that was begun under another config."""
  path = workdir / 'config.json'
  if path.exists():
    begun = from_dict(Config, json.loads(path.read_text()))
    changed = differences(begun, config)
    if changed:
      raise ConfigError(
        f'{workdir} was begun under another config; changed:'
        f' {"; ".join(changed)}; use a new --workdir'
      )


def _claim(workdir: pathlib.Path, config: Config) -> None:
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / 'config.json'
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(to_dict(config), indent=1))
  temporary.rename(path)


class Journal:
  """Answers that hit the time limit, so that a resumed run repeats them.

  Time is the one input that a second run need not repeat. Each line of the
  file names a batch of answers and the positions that timed out in it.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._timed_out: dict[str, tuple[int, ...]] = {}
    if path.exists():
      for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # A line cut by a kill.
          entry = json.loads(line)
          self._timed_out[entry['batch']] = tuple(entry['positions'])

  def replay(self, batch: str) -> tuple[int, ...]:
    return self._timed_out.get(batch, ())

  def record(self, batch: str, positions: tuple[int, ...]) -> None:
    if positions and positions != self.replay(batch):
      self._timed_out[batch] = positions
      with self._path.open('a') as file:
        line = json.dumps({'batch': batch, 'positions': positions})
        file.write(f'\n{line}')
        file.flush()
        os.fsync(file.fileno())


class Clock:
  """Seconds by phase."""

  def __init__(self):
    self.seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def phase(self, name: str):
    start = time.perf_counter()
    yield
    spent = time.perf_counter() - start
    self.seconds[name] = self.seconds.get(name, 0.0) + spent

  def record(self) -> Record:
    return {f'time/{name}': value for name, value in self.seconds.items()}


class Loop:
  """Carries things between the rooms."""

  def __init__(
    self,
    config: Config,
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    policy: Policy,
    graders: dict[RewardConfig, rewards.Grader],
    writer: writers.Writer,
  ):
    self.config = config
    self.workdir = workdir
    self.mesh = mesh
    self.policy = policy
    self.graders = graders
    self.writer = writer
    self.journal = Journal(workdir / 'timeouts.jsonl')
    # How much of metrics.jsonl the last checkpoint vouches for.
    self.metrics_bytes = 0

  def run(self, job: Job) -> dict[str, float]:
    """Runs or resumes one stage; returns its last evaluation."""
    stage = job.stage
    directory = _stage_directory(self.workdir, stage.name)
    batches = job.dataset.batches(
      job.config.data.batch_size,
      self.config.seed + job.first_step,
      jax.process_index(),
      jax.process_count(),
    )
    begin = self._fresh_state(job, self._result_of(stage.start))
    done, evaluation = 0, {}
    restored = checkpoint.restore(directory, begin)
    if restored:
      done, begin = restored.step, restored.state
      batches.set_state(restored.position['data'])
      evaluation = restored.position['evaluation']
      self.metrics_bytes = restored.position['metrics_bytes']
    if done == stage.steps:
      return evaluation
    self.writer.begin(stage.name, stage.steps, done, self.metrics_bytes)
    if not done and not stage.start and self.config.model.path:
      self.writer.write(self.evaluate(job, begin.params, 0))
    pending: Callable[[], Record] | None = None
    for step, state, read in self._steps(job, begin, batches, done):
      if pending:
        self.writer.write(pending())
      pending = read
      last = step == stage.steps
      evaluates = last or _due(step, job.config.eval.every)
      saves = last or _due(step, job.config.checkpoint.every)
      if evaluates or saves:
        self.writer.write(pending())
        pending = None
      if evaluates:
        record = self.evaluate(job, state.params, step)
        self.writer.write(record)
        evaluation = {k: v for k, v in record.items() if k.startswith('eval/')}
      if saves:
        self.metrics_bytes = self.writer.position()
        position = {
          'data': batches.get_state(),
          'metrics_bytes': self.metrics_bytes,
          'evaluation': evaluation,
        }
        keep = job.config.checkpoint.keep
        checkpoint.save(directory, step, state, position, keep=keep)
    return evaluation

  def _steps(
    self, job: Job, state: TrainState, batches: data.Batches, step: int
  ) -> Iterator[tuple[int, TrainState, Callable[[], Record]]]:
    """Yields (step, state, read); `read()` waits for the step's metrics.

    The yielded state is donated to the next step.
    """
    settings = job.config
    options = {
      'temperature': settings.sampler.temperature,
      'mini_batches': settings.optimizer.mini_batches,
      'micro_batches': settings.optimizer.micro_batches,
    }
    schedule = make_schedule(settings.optimizer, job.total_updates)
    while step < job.stage.steps:
      step += 1
      clock = Clock()
      batch, record = self._rollout(job, state.params, batches, step, clock)
      updates = (step - 1) * settings.optimizer.mini_batches
      record['train/learning_rate'] = float(schedule(updates))
      start = time.perf_counter()
      state, metrics, maxima = update(
        state,
        batch,
        model=self.policy.model,
        objective=job.objective,
        settings=settings.loss,
        options=tuple(options.items()),
      )
      if settings.group.samples:
        # The next rollout needs these parameters: nothing is lost by waiting,
        # and the seconds are charged to the phase that spends them.
        jax.block_until_ready(metrics)
      clock.seconds['update'] = time.perf_counter() - start

      def read(step=step, record=record, clock=clock, result=(metrics, maxima)):
        with clock.phase('update'):
          record |= _floats(*result)
        _check_finite(job.stage.name, step, record)
        head = {'stage': job.stage.name, 'step': step}
        return head | record | clock.record() | _memory()

      yield step, state, read

  def _rollout(
    self,
    job: Job,
    params: Any,
    batches: data.Batches,
    step: int,
    clock: Clock,
  ) -> tuple[GroupBatch, Record]:
    """Prompts -> scored groups on the mesh, and what only the host knows."""
    settings, stop_ids = job.config, self.policy.stop_ids
    with clock.phase('data'):
      examples = next(batches)
      prompts = _prompts(examples)
      given = Responses(
        tokens=examples.given_tokens,
        length=examples.given_length,
        behavior_logp=np.zeros(examples.given_tokens.shape, np.float32),
      )
      origin = np.broadcast_to(examples.given_origin, given.length.shape)
    sampled = None
    if settings.group.samples:
      with clock.phase('sample'):
        key = key_of(self.config.seed, 'sample', job.first_step + step)
        sampled = self._sample(
          params,
          prompts,
          key,
          settings.sampler,
          settings.group.samples,
          settings.data.max_response,
        )
    responses, origin = groups.join(given, origin, sampled)
    scores = np.zeros(responses.length.shape, np.float32)
    record: Record = {'train/tokens': int(responses.length.sum())}
    texts, finished = examples.given_texts, given.length > 0
    if sampled is not None:
      own, stopped = groups.decode(self.policy.tokenizer, sampled, stop_ids)
      texts = [a + b for a, b in zip(texts, own)]
      finished = np.concatenate([finished, stopped], axis=1)
      record['train/truncated_fraction'] = float(1 - stopped.mean())
    if job.objective.advantages is not None:
      with clock.phase('reward'):
        scored = self._score(
          settings.reward,
          f'{job.stage.name}/{step}',
          examples,
          texts,
          responses.length > 0,
          finished,
        )
      scores = scored.rewards
      record |= {
        f'train/reward_failures/{cause}': count
        for cause, count in scored.failures.items()
      }
    batch = groups.build(prompts, responses, origin, scores)
    return parallel.to_global(self.mesh, batch), record

  def _score(
    self,
    settings: RewardConfig,
    name: str,
    examples: data.Examples,
    texts: list[list[str]],
    present: np.ndarray,
    finished: np.ndarray,
  ) -> groups.Scored:
    """Grades a batch of groups; time-outs are journalled under `name`."""
    scored = groups.score(
      self.graders[settings],
      examples.prompts,
      examples.answers,
      texts,
      present,
      finished,
      timed_out=self.journal.replay(name),
    )
    self.journal.record(name, scored.timed_out)
    return scored

  def _sample(
    self,
    params: Any,
    prompts: Prompts,
    key: jax.Array,
    settings: SamplerConfig,
    group_size: int,
    max_tokens: int,
  ) -> Responses:
    responses = sample(
      self.policy.model,
      params,
      parallel.to_global(self.mesh, prompts),
      key,
      group_size=group_size,
      max_tokens=max_tokens,
      temperature=settings.temperature,
      top_k=settings.top_k,
      top_p=settings.top_p,
      min_p=settings.min_p,
      stop_ids=self.policy.stop_ids,
    )
    return jax.tree.map(np.asarray, responses)

  def evaluate(self, job: Job, params: Any, step: int) -> Record:
    """Held-out accuracy, likelihood of experts, and drift from the base."""
    settings = job.config.eval
    record: Record = {'stage': job.stage.name, 'step': step}
    clock = Clock()
    with clock.phase('evaluate'):
      for number, (split, dataset) in enumerate(job.held_out.items()):
        key = key_of(self.config.seed, 'evaluate', number)
        scores, failures = self._answers(
          job, params, dataset, key, f'{job.stage.name}/{step}/{split}'
        )
        values = evaluate.accuracy(scores, settings.ks)
        values |= {f'reward_failures/{k}': v for k, v in failures.items()}
        record |= {f'eval/{split}/{k}': v for k, v in values.items()}
      if job.demonstrations:
        record |= self._demonstrations(job, params)
      base = self._base(job, params)
      if base is not None and settings.kl_prompts and job.held_out:
        record |= self._drift(job, params, base)
    return record | clock.record()

  def _answers(
    self,
    job: Job,
    params: Any,
    dataset: data.Dataset,
    key: jax.Array,
    name: str,
  ) -> tuple[np.ndarray, dict[str, int]]:
    """Scores [problems, samples] of sampled answers, and failures by cause."""
    settings = job.config.eval
    sampling = dataclasses.replace(
      job.config.sampler, temperature=settings.temperature
    )
    scores, failures = [], collections.Counter()
    rows = _batches(dataset, settings.prompts, settings.batch_size)
    for number, examples in enumerate(rows):
      responses = self._sample(
        params,
        evaluate.pad_rows(_prompts(examples), settings.batch_size),
        key,
        sampling,
        settings.samples,
        settings.max_response,
      )
      responses = jax.tree.map(lambda x: x[: len(examples.index)], responses)  # noqa: B023
      texts, finished = groups.decode(
        self.policy.tokenizer, responses, self.policy.stop_ids
      )
      scored = self._score(
        job.config.reward,
        f'{name}/{number}',
        examples,
        texts,
        responses.length > 0,
        finished,
      )
      scores.append(scored.rewards)
      failures.update(scored.failures)
    return np.concatenate(scores), dict(failures)

  def _demonstrations(self, job: Job, params: Any) -> Record:
    """Likelihood of held-out expert answers, and the weights of Figure 2.

    C/p, the multiplier of grad p, before (C = 1) and after rectification goes
    to report/coefficients/ for the report.
    """
    settings = job.config
    logps = []
    rows = _batches(
      job.demonstrations, settings.eval.prompts, settings.eval.batch_size
    )
    for examples in rows:
      given = Responses(
        tokens=examples.given_tokens,
        length=examples.given_length,
        behavior_logp=np.zeros(examples.given_tokens.shape, np.float32),
      )
      batch = _unscored(_prompts(examples), given, settings.eval.batch_size)
      logp, _ = token_logprobs(
        self.policy.model,
        params,
        parallel.to_global(self.mesh, batch),
        chunk=settings.loss.chunk,
      )
      logps.append(np.asarray(logp)[batch.token_mask])
    logp = np.concatenate(logps)
    coefficient = np.asarray(dynamic_coefficient(logp, tau=settings.loss.tau))
    folder = self.workdir / 'report' / 'coefficients'
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
      folder / f'{job.stage.name}.npz',
      before=np.exp(-logp),
      after=coefficient * np.exp(-logp),
    )
    return {
      'eval/expert_logp': float(logp.mean()),
      'eval/expert_rectified_fraction': float(np.mean(coefficient < 1)),
    }

  def _drift(self, job: Job, params: Any, base: Any) -> Record:
    """Entropy and exact KL to the base, on own samples at temperature 1."""
    settings = job.config.eval
    key = key_of(self.config.seed, 'drift', 0)
    dataset = next(iter(job.held_out.values()))
    totals: dict[str, WeightedMean] = {}
    rows = _batches(dataset, settings.kl_prompts, settings.batch_size)
    for examples in rows:
      prompts = _prompts(examples)
      responses = self._sample(
        params,
        evaluate.pad_rows(prompts, settings.batch_size),
        key,
        SamplerConfig(temperature=1.0),
        1,
        settings.max_response,
      )
      rows = len(examples.index)
      batch = _unscored(
        prompts,
        jax.tree.map(lambda x: x[:rows], responses),  # noqa: B023
        settings.batch_size,
      )
      sums = drift(
        self.policy.model,
        params,
        base,
        parallel.to_global(self.mesh, batch),
        chunk=job.config.loss.chunk,
      )
      for name, value in sums.items():
        totals[name] = totals.get(name, 0) + value
    return {f'eval/{k}': float(v.value) for k, v in totals.items()}

  def _base(self, job: Job, params: Any) -> Any | None:
    """Parameters of the base policy, or None while it does not exist yet."""
    name = self.config.eval.base
    if not name:
      return self.policy.params
    if name == job.stage.name:
      return params
    if checkpoint.newest(_stage_directory(self.workdir, name)) is None:
      return None
    return self._result_of(name)

  def _result_of(self, name: str) -> Any:
    """Final parameters of a stage; of the model where the name is empty."""
    if not name:
      return self.policy.params
    return result_of(self.policy, self.workdir, name)[0]

  def _fresh_state(self, job: Job, params: Any) -> TrainState:
    """A train state on the mesh at step 0; `params` stay usable."""
    create = functools.partial(
      train_step.create_state,
      self.policy.model,
      optimizer=optimizer_of(job.config.optimizer, job.total_updates),
    )
    shardings = parallel.parameter_shardings(
      jax.eval_shape(create, params), self.mesh
    )
    return jax.jit(create, out_shardings=shardings)(params)


def _stage_directory(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / 'checkpoints' / name


def _due(step: int, every: int) -> bool:
  return bool(every) and step % every == 0


def _batches(
  dataset: data.Dataset, count: int, size: int
) -> Iterator[data.Examples]:
  """The first `count` rows in order; the last batch may be smaller."""
  count = min(count, len(dataset))
  for start in range(0, count, size):
    yield dataset.examples(np.arange(start, min(start + size, count)))


def _prompts(examples: data.Examples) -> Prompts:
  return Prompts(
    tokens=examples.tokens, length=examples.length, index=examples.index
  )


def _unscored(prompts: Prompts, given: Responses, rows: int) -> GroupBatch:
  """A batch without rewards, padded to `rows` rows with empty slots."""
  real = len(given.length)
  prompts, given = evaluate.pad_rows((prompts, given), rows)
  given.length[real:] = 0
  zeros = np.zeros(given.length.shape, np.float32)
  return groups.build(prompts, given, zeros.astype(np.int32), zeros)


def _floats(
  metrics: train_step.Metrics, maxima: train_step.Maxima
) -> dict[str, float]:
  """Waits for the device; a mean over nothing is left out."""
  metrics, maxima = jax.device_get((metrics, maxima))
  means = {k: float(m.value) for k, m in metrics.items() if m.weight > 0}
  # A probability can underflow to 0, and JSON has no word for infinity.
  peaks = {k: min(float(v), FLOAT32_MAX) for k, v in maxima.items()}
  return {f'train/{k}': v for k, v in sorted((means | peaks).items())}


def _check_finite(stage: str, step: int, record: Record) -> None:
  for name in ('train/loss', 'train/grad_norm'):
    if not math.isfinite(record[name]):
      raise NonFiniteError(
        f'stage {stage}, step {step}: {name} is {record[name]}; the last'
        ' checkpoint before it stands'
      )


def _memory() -> Record:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {'memory/host_peak_mb': peak / 1024}
