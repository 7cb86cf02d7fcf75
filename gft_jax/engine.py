"""The compiled programs of a run, on its mesh: the one place with jit.

Rooms above ask the engine to sample, score, update and measure; they see no
mesh and no compiler. Everything random is a function of (seed, stream, step):
`Engine.key` is the only source of keys, and no key is ever stored.
"""

import collections
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.training.train_state import TrainState

from gft_jax import (
  compiler,
  data,
  evaluate,
  groups,
  objectives,
  packing,
  parallel,
  rewards,
  sampler,
  train_step,
)
from gft_jax.batch import GroupBatch, Prompts, Responses
from gft_jax.config import (
  Config,
  LossConfig,
  OptimizerConfig,
  RewardConfig,
  SamplerConfig,
  require,
)
from gft_jax.data import pipeline
from gft_jax.models import lora, reward_model, transformer
from gft_jax.ops.masking import WeightedMean
from gft_jax.optimizer import make_optimizer

# Named random streams; see `key_of`.
STREAMS = {'init': 0, 'sample': 1, 'evaluate': 2, 'drift': 3, 'show': 4}

compiler.return_freed_memory()


# The compiled programs. Models, objectives and settings are static, so equal
# settings share one program over all stages.
@functools.partial(
  jax.jit,
  static_argnames=(
    'model',
    'group_size',
    'max_tokens',
    'temperature',
    'top_k',
    'top_p',
    'min_p',
    'stop_ids',
    'stop_sequences',
  ),
)
def sample(model, params, prompts, key, **settings):
  """sampler.sample_groups; on a mesh, rows leave each device by themselves."""
  run = functools.partial(sampler.sample_groups, model, **settings)
  return parallel.over_prompts(run, whole=(0, 2))(params, prompts, key)


@functools.partial(jax.jit, static_argnames=('mesh', 'dtype'))
def rollout_copy(params, *, mesh, dtype):
  """Parameters as the sampler uses them, on its mesh of the same devices."""
  return parallel.lay_out(transformer.for_compute(params, dtype), mesh)


token_logprobs = jax.jit(
  train_step.token_logprobs,
  static_argnames=('model', 'chunk', 'temperature'),
)
advantages_of = jax.jit(
  objectives.advantages_of, static_argnames=('objective', 'settings')
)
drift = jax.jit(evaluate.drift, static_argnames=('model', 'chunk'))
demonstration_tokens = jax.jit(
  evaluate.demonstration_tokens, static_argnames=('model', 'chunk')
)


@functools.partial(
  jax.jit,
  static_argnames=('model', 'objective', 'settings', 'options'),
  donate_argnames='state',
)
def update(
  state, batch, reference, frozen, *, model, objective, settings, options
):
  step = train_step.make_train_step(model, objective, settings, **dict(options))
  return step(state, batch, reference, frozen)


response_scores = jax.jit(reward_model.scores, static_argnames='model')
compare_pairs = jax.jit(reward_model.compare, static_argnames='model')
update_reward_model = jax.jit(
  reward_model.update, static_argnames='model', donate_argnames='state'
)

# One optimizer object per setting: it is part of a train state's identity.
optimizer_of = functools.cache(make_optimizer)


class Policy(NamedTuple):
  """What is trained, and what that needs.

  Attributes:
    model: a Flax module with the entrances of models.transformer.
    params: what is trained, where the first stage starts; a plain pytree.
    tokenizer: a transformers tokenizer with an EOS.
    stop_ids: tokens that end an answer: every EOS that the model's folder names,
      and sampler.stop_ids.
    frozen: the other parameters of the model, or None; see models.lora.
  """

  model: Any
  params: Any
  tokenizer: Any
  stop_ids: tuple[int, ...]
  frozen: Any | None = None


def key_of(seed: int, stream: str, step: int) -> jax.Array:
  """The key of (seed, stream, step); no key is ever stored."""
  root = jax.random.key(seed, impl='threefry2x32')
  return jax.random.fold_in(jax.random.fold_in(root, STREAMS[stream]), step)


def spread(create: Any, params: Any, mesh: jax.sharding.Mesh) -> Any:
  """`create(params)` in the shardings of the partition rules."""
  shardings = parallel.parameter_shardings(jax.eval_shape(create, params), mesh)
  return jax.jit(create, out_shardings=shardings)(params)


class Judge:
  """A reward model on the mesh: texts in, scores out."""

  # Prompts of one call, for each device that holds prompts.
  ROWS = 16

  def __init__(self, policy: Policy, mesh: jax.sharding.Mesh):
    """Takes what `huggingface.load_reward_model` gives."""
    self._model, self._tokenizer = policy.model, policy.tokenizer
    self._params = spread(lambda params: params, policy.params, mesh)
    self._mesh = mesh

  def scores(self, prompts: list[str], texts: list[list[str]]) -> np.ndarray:
    """[B, G] float32 for B prompts with G answers each.

    Every process has the same number of prompts.

    Raises:
      ConfigError: an answer is longer than the model's positions allow.
    """
    asked, answered = pipeline.encode_groups(prompts, texts, self._tokenizer)
    both = asked.length[:, None] + answered.length.reshape(len(prompts), -1)
    # All processes run one program, or fail together.
    prompt, answer, both = parallel.largest(
      asked.length.max(), answered.length.max(), both.max()
    )
    room = self._model.architecture.max_positions
    require(
      both <= room,
      f'reward.model: a prompt and its answer take up to {both} tokens, but the'
      f' model has max_positions={room}',
    )
    batch = pipeline.pad_groups(
      asked, answered, evaluate.width_of(prompt), evaluate.width_of(answer)
    )
    rows, parts = self.ROWS * parallel.prompt_shards(self._mesh), []
    for start in range(0, len(prompts), rows):
      part = jax.tree.map(lambda x, at=start: x[at : at + rows], batch)
      padded = parallel.to_global(self._mesh, evaluate.unscored(*part, rows))
      with jax.set_mesh(self._mesh):
        scores = response_scores(self._model, self._params, padded)
      count = len(part[0].length)
      parts.append(parallel.to_local(self._mesh, scores)[:count])
    return np.concatenate(parts)


class Engine:
  """The compiled programs, the mesh and the graders of one run.

  Its methods take parameters like those of the policy: what is trained. The
  frozen ones are kept here, once for all of them.
  """

  def __init__(
    self,
    config: Config,
    policy: Policy,
    mesh: jax.sharding.Mesh,
    graders: dict[RewardConfig, rewards.Grader],
    journal: rewards.Journal | None,
    judges: dict[str, Judge] | None = None,
  ):
    """`journal` is None where nothing is resumed."""
    self.model = policy.model
    self._tokenizer = policy.tokenizer
    self._stop_ids = policy.stop_ids
    self.key = functools.partial(key_of, config.seed)
    self._mesh = mesh
    self._rollout_mesh = parallel.rollout_mesh(mesh, config.mesh)
    self._frozen = None
    if policy.frozen is not None:
      shardings = parallel.parameter_shardings(policy.frozen, mesh)
      self._frozen = jax.device_put(policy.frozen, shardings)
    self._graders = graders
    self._journal = journal
    self._judges = judges or {}

  def sample(
    self,
    params: Any,
    prompts: Prompts,
    key: jax.Array,
    settings: SamplerConfig,
    group_size: int,
    max_tokens: int,
  ) -> Responses:
    """Answers of the policy, on the host.

    A stop string ends an answer in the loop where it is spelled as the
    tokenizer spells it; in any other spelling the answer is cut here.
    """
    mesh = self._rollout_mesh
    params = self._for_rollout(self._whole(params))
    prompts = parallel.to_global(mesh, prompts)
    with jax.set_mesh(mesh):
      responses = sample(
        self.model,
        params,
        prompts,
        key,
        group_size=group_size,
        max_tokens=max_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        stop_ids=self._stop_ids,
        stop_sequences=self._spell(settings.stop_strings),
      )
    responses = parallel.to_local(mesh, responses)
    return groups.cut(self._tokenizer, responses, settings.stop_strings)

  def decode(
    self, responses: Responses, settings: SamplerConfig
  ) -> tuple[list[list[str]], np.ndarray]:
    """Texts of sampled answers, and which are finished; see groups.decode."""
    return groups.decode(
      self._tokenizer, responses, self._stop_ids, settings.stop_strings
    )

  def _spell(self, strings: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Token sequences of those strings that the vocabulary can spell."""
    spelled = (
      tuple(self._tokenizer(text, add_special_tokens=False)['input_ids'])
      for text in strings
    )
    return tuple(
      ids
      for ids, text in zip(spelled, strings)
      if ids and text in self._tokenizer.decode(list(ids))
    )

  def score(
    self,
    settings: RewardConfig,
    name: str,
    examples: data.Examples,
    texts: list[list[str]],
    present: np.ndarray,
    finished: np.ndarray,
  ) -> groups.Scored:
    """Grades this process's groups; time-outs are journalled under `name`.

    The failures that it counts are those of all processes.
    """
    grader, judged = self._graders[settings], None
    # The journal counts the answers of all processes, so that a run of another
    # number of them can replay it.
    first = jax.process_index() * present.size
    own = range(first, first + present.size)
    replayed = self._journal.replay(name) if self._journal else ()
    if grader.asks_model:
      judge = self._judges[settings.model]
      judged = judge.scores(examples.prompts, texts)
    scored = groups.score(
      grader,
      examples.prompts,
      examples.answers,
      texts,
      present,
      finished,
      judged=judged,
      timed_out=[i - first for i in replayed if i in own],
    )
    late, failures = [], collections.Counter()
    mine = [first + i for i in scored.timed_out]
    for positions, counts in parallel.exchange([mine, scored.failures]):
      late += positions
      failures.update(counts)
    if self._journal and jax.process_index() == 0:
      self._journal.record(name, tuple(late))
    return scored._replace(failures=dict(failures))

  def fresh_state(
    self, params: Any, settings: OptimizerConfig, total_updates: int
  ) -> TrainState:
    """A train state on the mesh at step 0; `params` stay usable."""
    create = functools.partial(
      train_step.create_state,
      self.model,
      optimizer=optimizer_of(settings, total_updates),
    )
    return spread(create, params, self._mesh)

  def copy(self, params: Any) -> Any:
    """Parameters on the mesh that no update donates."""
    copy = functools.partial(jax.tree.map, jnp.copy)
    return spread(copy, params, self._mesh)

  def update(
    self,
    state: TrainState,
    batch: GroupBatch,
    reference: Any | None,
    objective: objectives.Objective,
    config: Config,
  ) -> tuple[TrainState, train_step.Metrics, train_step.Maxima]:
    """One training step; `state` is donated. See train_step.

    It runs packed where that takes fewer tokens, see packing; each size of a
    packing is a program of its own.
    """
    batch = packing.pack(
      batch,
      shards=parallel.prompt_shards(self._mesh) // jax.process_count(),
      parts=config.optimizer.mini_batches * config.optimizer.micro_batches,
      rows=hasattr(self.model, 'packed'),
      agree=parallel.largest,
    )
    options = {
      'temperature': config.sampler.temperature,
      'mini_batches': config.optimizer.mini_batches,
      'micro_batches': config.optimizer.micro_batches,
    }
    batch = self.put(batch)
    with jax.set_mesh(self._mesh):
      return update(
        state,
        batch,
        reference,
        self._frozen,
        model=self.model,
        objective=objective,
        settings=config.loss,
        options=tuple(options.items()),
      )

  def advantages(
    self,
    batch: GroupBatch,
    objective: objectives.Objective,
    settings: LossConfig,
  ) -> np.ndarray:
    """[B, G] advantages of groups on the host; see objectives."""
    return np.asarray(advantages_of(objective, batch, settings))

  def token_logprobs(
    self, params: Any, batch: GroupBatch, *, chunk: int
  ) -> np.ndarray:
    """[B, G, T] log-probabilities, on the host."""
    params, batch = self._whole(params), self.put(batch)
    with jax.set_mesh(self._mesh):
      logp, _ = token_logprobs(self.model, params, batch, chunk=chunk)
    return self._take(logp)

  def drift(
    self, params: Any, base: Any, batch: GroupBatch, *, chunk: int
  ) -> dict[str, WeightedMean]:
    """See evaluate.drift."""
    params, base = self._whole(params), self._whole(base)
    batch = self.put(batch)
    with jax.set_mesh(self._mesh):
      found = drift(self.model, params, base, batch, chunk=chunk)
    # Two programs that talk to other processes never run at one time.
    return jax.block_until_ready(found)

  def demonstration_tokens(
    self, params: Any, batch: GroupBatch, *, chunk: int
  ) -> dict[str, np.ndarray]:
    """See evaluate.demonstration_tokens; on the host."""
    params, batch = self._whole(params), self.put(batch)
    with jax.set_mesh(self._mesh):
      found = demonstration_tokens(self.model, params, batch, chunk=chunk)
    return self._take(found)

  def anywhere(self, *flags: bool) -> tuple[bool, ...]:
    """Which flags any process raises."""
    return parallel.anywhere(*flags)

  def put(self, tree: Any) -> Any:
    """Host-local rows -> global arrays on the mesh."""
    return parallel.to_global(self._mesh, tree)

  def _whole(self, params: Any) -> Any:
    """All parameters of the model."""
    return lora.join(self._frozen, params)

  def _for_rollout(self, params: Any) -> Any:
    """All parameters in the layout of the sampler, by the devices themselves."""
    if self._rollout_mesh is self._mesh:
      return params
    return rollout_copy(params, mesh=self._rollout_mesh, dtype=self.model.dtype)

  def _take(self, tree: Any) -> Any:
    """Rows on the mesh -> those of this process, on the host."""
    return parallel.to_local(self._mesh, tree)
