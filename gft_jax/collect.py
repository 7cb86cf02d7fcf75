"""One rollout: prompts -> sampled answers -> scores -> groups, on the host."""

from collections.abc import Iterator

import jax
import numpy as np

from gft_jax.batch import GroupBatch, Responses, host_mask
from gft_jax.config import Config
from gft_jax.data.pipeline import Examples, given_of, prompts_of
from gft_jax.engine import Engine
from gft_jax.parallel import processes
from gft_jax.rewards.tally import Tally
from gft_jax.rollout import groups
from gft_jax.run.clock import Clock
from gft_jax.training.objectives import Objective
from gft_jax.types import Numbers, Params

# These metrics of a rollout are means; all others are counts.
MEANS = ('train/truncated_fraction', 'train/reward_part/')


class Collector:
  """Rollouts of one step of a stage.

  Attributes:
    settings: of the stage.
    clock: what the phases of the rollout are charged to.
    tally: of what it has graded.
  """

  def __init__(
    self,
    engine: Engine,
    settings: Config,
    objective: Objective,
    clock: Clock,
  ):
    self._engine = engine
    self._objective = objective
    self.settings = settings
    self.clock = clock
    self.tally = Tally()

  def collect(
    self,
    params: Params,
    batches: Iterator[Examples],
    key: jax.Array,
    name: str,
  ) -> tuple[GroupBatch, Numbers]:
    """Scored groups of one step, and what only the host knows of them.

    Groups that teach nothing are replaced, if group.refills asks for it, by
    those of further rollouts.

    Args:
      params: of the policy that answers.
      batches: where the prompts come from; each rollout takes one.
      key: of the rollout.
      name: of the rollout, in the journal of time-outs and in messages.

    Raises:
      RewardError: a reward of the user failed for every answer.
    """

    def rollout(key: jax.Array, name: str) -> tuple[GroupBatch, Numbers]:
      with self.clock.phase('data'):
        examples = next(batches)
      return self.groups_of(params, examples, key, name)

    batch, record = rollout(key, name)
    most, used = self.settings.group.refills or 0, 0
    while used < most and any_flat(batch):
      used += 1
      further, counts = rollout(jax.random.fold_in(key, used), f'{name}/{used}')
      batch = refilled(batch, further, self.settings.data.batch_size)
      record = {
        name: record.get(name, 0) + counts.get(name, 0)
        for name in record | counts
      }
    self.tally.check(f'step {name}', self._engine.told)
    for name in record:
      if name.startswith(MEANS):
        record[name] /= 1 + used
    if most:
      record['train/refills'] = used
    tokens = int(host_mask(batch.responses).sum())
    return batch, record | {'train/tokens': sum(processes.exchange(tokens))}

  def groups_of(
    self, params: Params, examples: Examples, key: jax.Array, name: str
  ) -> tuple[GroupBatch, Numbers]:
    """Scored groups of these prompts, journalled under `name`."""
    settings, engine = self.settings, self._engine
    prompts, given = prompts_of(examples), given_of(examples)
    origin = np.broadcast_to(examples.given_origin, given.length.shape)
    sampled: Responses | None = None
    record: Numbers = {}
    texts, finished = examples.given_texts, given.length > 0
    if settings.group.samples:
      with self.clock.phase('sample'):
        sampled = engine.sample(
          params,
          prompts,
          key,
          settings.sampler,
          settings.group.samples,
          settings.data.max_response,
        )
      own, stopped = engine.decode(sampled, settings.sampler, prompts)
      texts = [a + b for a, b in zip(texts, own)]
      finished = np.concatenate([np.asarray(finished), stopped], axis=1)
      stopped = processes.gather(stopped)
      record['train/truncated_fraction'] = float(1 - stopped.mean())
    responses, origin = groups.join(given, origin, sampled)
    scores = np.zeros(responses.length.shape, np.float32)
    if self._objective.is_scored:
      scores, counts = self._grade(
        name,
        examples,
        texts,
        np.asarray(responses.length) > 0,
        np.asarray(finished),
      )
      record |= counts
    return groups.build(prompts, responses, origin, scores), record

  def _grade(
    self,
    name: str,
    examples: Examples,
    texts: list[list[str]],
    present: np.ndarray,
    finished: np.ndarray,
  ) -> tuple[np.ndarray, Numbers]:
    """[B, G] rewards, and failures and parts as metrics."""
    with self.clock.phase('reward'):
      scored = self._engine.score(
        self.settings.reward,
        name,
        examples.problems,
        texts,
        present,
        finished,
      )
    self.tally.add(scored.answers, scored.failed)
    record: Numbers = {
      f'train/reward_failures/{cause}': count
      for cause, count in scored.failures.items()
    }
    if len(scored.parts) > 1:
      present, parts = processes.gather((present, scored.parts))
      record |= {
        f'train/reward_part/{part}': float(values[present].mean())
        for part, values in parts.items()
      }
    return scored.values, record


def any_flat(batch: GroupBatch) -> bool:
  """Whether any process has a group whose rewards are all equal."""
  return processes.any_process(bool(groups.flat(batch).any()))[0]


def refilled(
  batch: GroupBatch, further: GroupBatch, batch_size: int
) -> GroupBatch:
  """`groups.refill` over all processes, for any may have what another lacks."""
  whole = groups.refill(processes.gather(batch), processes.gather(further))
  own = processes.own_rows(batch_size)
  return jax.tree.map(lambda x: x[own], whole)
