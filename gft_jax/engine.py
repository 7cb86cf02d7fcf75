"""The compiled programs of a run, on its mesh.

Rooms above ask the engine to sample, score, update and measure; they see no
mesh and no compiler. Everything random is a function of (seed, stream, step):
`Engine.key` is the only source of keys, and no key is ever stored.
"""

import contextlib
import functools
import itertools
import math
import pathlib
from collections.abc import Generator, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.training.train_state import TrainState
from transformers import PreTrainedTokenizerBase

from gft_jax import huggingface, programs
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
from gft_jax.models import lora, packing
from gft_jax.models.transformer import Transformer
from gft_jax.ops.masking import WeightedMean
from gft_jax.parallel import processes, sharding
from gft_jax.parallel.mesh import make_mesh, rollout_mesh
from gft_jax.policy import Policy, key_of
from gft_jax.rewards.grader import Grader, Problems, Scores, score_groups
from gft_jax.rewards.journal import Journal
from gft_jax.rewards.tally import joined
from gft_jax.rollout import groups
from gft_jax.rollout.sampler import Sampling
from gft_jax.rollout.texts import cut_at_stop_strings, decode_responses
from gft_jax.run import compiler
from gft_jax.training import objectives, train_step
from gft_jax.training.loss import StepSettings
from gft_jax.training.metrics import Maxima, Metrics
from gft_jax.types import Params, Tree


class RewardScorer:
  """A reward model on the mesh: texts in, scores out."""

  # Prompts of one call, for each device that holds prompts.
  ROWS = 16

  def __init__(
    self,
    model: Transformer,
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    mesh: jax.sharding.Mesh,
  ):
    """Takes what `huggingface.load_reward_model` gives, and a mesh."""
    self._model, self._tokenizer = model, tokenizer
    self._params = sharding.create_sharded(lambda params: params, params, mesh)
    self._mesh = mesh

  def scores(
    self, prompts: Sequence[str], texts: Sequence[Sequence[str]]
  ) -> np.ndarray:
    """[B, G] float32 for B prompts with G answers each.

    Every process has the same number of prompts.

    Raises:
      ConfigError: an answer is longer than the model's positions allow.
    """
    asked, answered = pipeline.encode_groups(prompts, texts, self._tokenizer)
    both = asked.length[:, None] + answered.length.reshape(len(prompts), -1)
    # All processes run one program, or fail together.
    prompt, answer, both = processes.largest(
      asked.length.max(), answered.length.max(), both.max()
    )
    room = self._model.architecture.max_positions
    require(
      both <= room,
      f'reward.model: a prompt and its answer take up to {both} tokens, but the'
      f' model has max_positions={room}',
    )
    batch = pipeline.pad_groups(
      asked, answered, groups.width_of(prompt), groups.width_of(answer)
    )
    holders = sharding.prompt_shards(self._mesh)
    calls = math.ceil(len(prompts) / (self.ROWS * holders))
    rows = math.ceil(len(prompts) / calls / holders) * holders
    parts = []
    for start in range(0, len(prompts), rows):
      part = jax.tree.map(lambda x, at=start: x[at : at + rows], batch)
      padded = sharding.to_global(
        self._mesh, groups.unscored(part[0], part[1], rows)
      )
      with jax.set_mesh(self._mesh), programs.precise(self._model.dtype):
        scores = programs.response_scores(self._model, self._params, padded)
      count = len(part[0].length)
      parts.append(sharding.to_local(self._mesh, scores)[:count])
    return np.concatenate(parts)


class Engine:
  """The compiled programs, the mesh and the graders of one run.

  Its methods take parameters like those of the policy: what is trained. The
  frozen ones are kept here, once for all of them.

  Attributes:
    told: what has been warned of, once a run.
  """

  def __init__(
    self,
    config: Config,
    policy: Policy,
    mesh: jax.sharding.Mesh,
    graders: Mapping[RewardConfig, Grader],
    scorers: Mapping[str, RewardScorer],
    journal: Journal | None,
  ):
    """See `open_engine`, which closes the graders too."""
    compiler.return_freed_memory()
    self.model = policy.model
    self._tokenizer = policy.tokenizer
    self._eos_ids = policy.eos_ids
    self.key = functools.partial(key_of, config.seed)
    self._mesh = mesh
    self._rollout_mesh = rollout_mesh(mesh, config.mesh)
    self._frozen = None
    if policy.frozen is not None:
      shardings = sharding.parameter_shardings(policy.frozen, mesh)
      self._frozen = jax.device_put(policy.frozen, shardings)
    self._graders, self._scorers = graders, scorers
    self._journal = journal
    self.told: set[str] = set()

  def sample(
    self,
    params: Params,
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
    prompts = sharding.to_global(mesh, prompts)
    with self._on(mesh):
      responses = programs.sample(
        self.model,
        params,
        prompts,
        key,
        group_size=group_size,
        max_tokens=max_tokens,
        sampling=Sampling(
          temperature=settings.temperature,
          top_k=settings.top_k,
          top_p=settings.top_p,
          min_p=settings.min_p,
          stop_ids=self._stop_ids(settings),
          stop_sequences=self._spell(settings.stop_strings),
        ),
      )
    responses = sharding.to_local(mesh, responses)
    return cut_at_stop_strings(
      self._tokenizer, responses, settings.stop_strings
    )

  def decode(
    self, responses: Responses, settings: SamplerConfig, prompts: Prompts
  ) -> tuple[list[list[str]], np.ndarray]:
    """Texts of sampled answers to `prompts`, and which are finished.

    See texts.decode_responses.
    """
    return decode_responses(
      self._tokenizer,
      responses,
      self._stop_ids(settings),
      settings.stop_strings,
      prompts,
    )

  def _stop_ids(self, settings: SamplerConfig) -> tuple[int, ...]:
    """The EOS tokens of the model, and what the settings add to them."""
    return (*self._eos_ids, *settings.stop_ids)

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
    problems: Problems,
    texts: Sequence[Sequence[str]],
    present: np.ndarray,
    finished: np.ndarray,
  ) -> Scores:
    """Grades this process's groups; time-outs are journalled under `name`.

    The answers and failures that it counts are those of all processes.
    """
    grader, judged = self._graders[settings], None
    # The journal counts the answers of all processes, so that a run of another
    # number of them can replay it.
    first = jax.process_index() * present.size
    own = range(first, first + present.size)
    replayed = self._journal.replay(name) if self._journal else ()
    if grader.asks_model:
      judged = self._scorers[settings.model].scores(problems.prompts, texts)
    scored = score_groups(
      grader,
      problems,
      texts,
      present,
      finished,
      judged=judged,
      timed_out=[i - first for i in replayed if i in own],
    )
    mine = [first + i for i in scored.timed_out]
    late, failed, answers = zip(
      *processes.exchange([mine, scored.failed, scored.answers])
    )
    if self._journal and jax.process_index() == 0:
      self._journal.record(name, tuple(itertools.chain(*late)))
    return scored._replace(failed=joined(failed), answers=sum(answers))

  def fresh_state(
    self, params: Params, settings: OptimizerConfig, total_updates: int
  ) -> TrainState:
    """A train state on the mesh at step 0; `params` stay usable."""
    create = functools.partial(
      train_step.create_state,
      self.model,
      optimizer=programs.optimizer_of(settings, total_updates),
    )
    return sharding.create_sharded(create, params, self._mesh)

  def copy(self, params: Params) -> Params:
    """Parameters on the mesh that no update donates."""
    copy = functools.partial(jax.tree.map, jnp.copy)
    return sharding.create_sharded(copy, params, self._mesh)

  def update(
    self,
    state: TrainState,
    batch: GroupBatch,
    reference: Params | None,
    objective: objectives.Objective,
    config: Config,
  ) -> tuple[TrainState, Metrics, Maxima]:
    """One training step; `state` is donated. See train_step.

    It runs packed where that takes fewer tokens, see packing; each size of a
    packing is a program of its own.
    """
    batch = packing.pack(
      batch,
      shards=sharding.prompt_shards(self._mesh) // jax.process_count(),
      parts=config.optimizer.mini_batches * config.optimizer.micro_batches,
      rows=hasattr(self.model, 'packed'),
      agree=processes.largest,
    )
    batch = self.put(batch)
    with self._on(self._mesh):
      return programs.update(
        state,
        batch,
        reference,
        self._frozen,
        model=self.model,
        settings=StepSettings.of(objective, config),
      )

  def advantages(
    self,
    batch: GroupBatch,
    objective: objectives.Objective,
    settings: LossConfig,
  ) -> np.ndarray:
    """[B, G] advantages of groups on the host; see objectives."""
    return np.asarray(programs.advantages_of(objective, batch, settings))

  def token_logprobs(
    self, params: Params, batch: GroupBatch, *, chunk: int
  ) -> np.ndarray:
    """[B, G, T] log-probabilities, on the host."""
    params, batch = self._whole(params), self.put(batch)
    with self._on(self._mesh):
      logp, _ = programs.token_logprobs(self.model, params, batch, chunk=chunk)
    return self._take(logp)

  def drift(
    self, params: Params, base: Params, batch: GroupBatch, *, chunk: int
  ) -> dict[str, WeightedMean]:
    """See forward.drift."""
    params, base = self._whole(params), self._whole(base)
    batch = self.put(batch)
    with self._on(self._mesh):
      found = programs.drift(self.model, params, base, batch, chunk=chunk)
    # Two programs that talk to other processes never run at one time.
    return jax.block_until_ready(found)

  def demonstration_tokens(
    self, params: Params, batch: GroupBatch, *, chunk: int
  ) -> dict[str, np.ndarray]:
    """See forward.demonstration_tokens; on the host."""
    params, batch = self._whole(params), self.put(batch)
    with self._on(self._mesh):
      found = programs.demonstration_tokens(
        self.model, params, batch, chunk=chunk
      )
    return self._take(found)

  def put(self, tree: Tree) -> Tree:
    """Host-local rows -> global arrays on the mesh."""
    return sharding.to_global(self._mesh, tree)

  @contextlib.contextmanager
  def _on(self, mesh: jax.sharding.Mesh) -> Generator[None, None, None]:
    """On a mesh, with products as precise as the dtype of the model."""
    with jax.set_mesh(mesh), programs.precise(self.model.dtype):
      yield

  def _whole(self, params: Params) -> Params:
    """All parameters of the model."""
    return lora.join(self._frozen, params)

  def _for_rollout(self, params: Params) -> Params:
    """All parameters in the layout of the sampler, by the devices themselves."""
    if self._rollout_mesh is self._mesh:
      return params
    return programs.rollout_copy(
      params, mesh=self._rollout_mesh, dtype=self.model.dtype
    )

  def _take(self, tree: Tree) -> Tree:
    """Rows on the mesh -> those of this process, on the host."""
    return sharding.to_local(self._mesh, tree)


@contextlib.contextmanager
def open_engine(
  config: Config,
  policy: Policy,
  rewards: Iterable[RewardConfig] = (),
  timeouts: pathlib.Path | None = None,
) -> Generator[Engine, None, None]:
  """The engine of a run, with its graders and reward models.

  Args:
    config: its mesh and seed are used.
    policy: its model, tokenizer and frozen parameters are used.
    rewards: by which `Engine.score` is asked to grade.
    timeouts: file of the journal of time-outs, or None where nothing is
      resumed.

  Raises:
    ConfigError: too few devices, or something that is no reward.
  """
  mesh = make_mesh(config.mesh)
  with contextlib.ExitStack() as stack:
    graders = {
      settings: stack.enter_context(Grader(settings))
      for settings in set(rewards)
    }
    folders = {
      settings.model for settings, g in graders.items() if g.asks_model
    }
    scorers = {
      folder: RewardScorer(*huggingface.load_reward_model(folder), mesh)
      for folder in folders
    }
    journal = Journal(timeouts) if timeouts else None
    yield Engine(config, policy, mesh, graders, scorers, journal)
