"""A stage where it begins, goes on, and voids what came after it."""

import types

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from gft_jax import stage as stage_lib
from gft_jax.batch import SELF, Prompts, Responses
from gft_jax.config import (
  CheckpointConfig,
  Config,
  ConfigError,
  DataConfig,
  GroupConfig,
  LossConfig,
  OptimizerConfig,
  Stage,
)
from gft_jax.ops.masking import WeightedMean
from gft_jax.plan import Job
from gft_jax.rewards.tally import Failure, Tally
from gft_jax.rollout import groups
from gft_jax.run import checkpoint
from gft_jax.run.clock import Clock
from gft_jax.run.profiling import Profiler
from gft_jax.run.progress import Position, Spent
from gft_jax.run.workdir import stage_directory
from gft_jax.stage import Begun, Run, Step
from gft_jax.training.metrics import NonFiniteError

CONFIG = Config(
  seed=40,
  stages=(
    Stage('base', '', 'sft', 3),
    Stage('gft', 'base', 'gft', 3),
    Stage('grpo', 'gft', 'grpo', 3),
    Stage('other', 'base', 'gft', 3),
  ),
)


class Batches:
  """Position 0, 1, ...; as data.dataset.Batches, in one number."""

  def __init__(self):
    self.at = 0

  def get_state(self):
    return {'at': self.at}

  def set_state(self, state):
    self.at = state['at']


class Dataset:
  """Remembers how its batches were asked for."""

  def __init__(self):
    self.asked = []

  def batches(self, *arguments):
    self.asked.append(arguments)
    return Batches()


class Engine:
  """A state of one parameter; copies and states are remembered."""

  def __init__(self):
    self.asked, self.copied, self.told = [], [], set()

  def fresh_state(self, params, settings, total_updates):
    self.asked.append((settings, total_updates))
    return state_of(params['w'])

  def copy(self, params):
    self.copied.append(params)
    return jax.tree.map(jnp.copy, params)


def state_of(value, step=0):
  params = {'w': jnp.asarray(value, jnp.float32)}
  state = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(1.0))
  return state.replace(step=jnp.int32(step))


def run_in(workdir, engine=None, profile=''):
  return Run(
    config=CONFIG,
    workdir=workdir,
    policy=types.SimpleNamespace(params={'w': jnp.float32(1)}),
    engine=engine or Engine(),
    recorder=types.SimpleNamespace(valid_bytes=0, unreported_times=Clock()),
    saver=None,
    profiler=Profiler(workdir / 'profile', profile),
    stop_request=None,
  )


def job_of(stage=CONFIG.stages[0], first_step=0, **settings):
  """The settings of the stage are not those of the run."""
  own = {'data': DataConfig(batch_size=6), 'loss': LossConfig(kl_weight=0.0)}
  config = Config(**own | settings)
  return Job(stage, config, 'objective', Dataset(), None, first_step, 30)


def save_at(workdir, stage, step, value, position):
  checkpoint.save(
    stage_directory(workdir, stage),
    step,
    state_of(value, step),
    position.to_json(),
    keep=1,
  )


def folders(workdir):
  return sorted(path.name for path in (workdir / 'checkpoints').iterdir())


@pytest.fixture
def saved(tmp_path):
  """A folder for each stage, one file in each."""
  for stage in CONFIG.stages:
    folder = stage_directory(tmp_path, stage.name)
    folder.mkdir(parents=True)
    (folder / 'manifest.json').write_text('{}')
  return tmp_path


@pytest.mark.parametrize(
  'stage, left',
  [
    (0, ['base']),
    (1, ['base', 'gft']),
    (2, ['base', 'gft', 'grpo']),
    (3, ['base', 'gft', 'grpo', 'other']),
  ],
)
def test_what_later_stages_saved_is_void_and_nothing_else(saved, stage, left):
  (saved / 'metrics.jsonl').write_text('kept')
  stage_lib.void_later_stages(run_in(saved), CONFIG.stages[stage], 2)
  assert folders(saved) == left
  for name in left:
    assert (stage_directory(saved, name) / 'manifest.json').exists()
  assert (saved / 'metrics.jsonl').read_text() == 'kept'


def test_each_stage_that_is_void_is_named_and_no_other(saved, caplog):
  stage_lib.void_later_stages(run_in(saved), CONFIG.stages[1], 2)
  assert [record.getMessage() for record in caplog.records] == [
    'stage gft goes on from step 2, so grpo begins anew',
    'stage gft goes on from step 2, so other begins anew',
  ]
  caplog.clear()
  stage_lib.void_later_stages(run_in(saved), CONFIG.stages[1], 2)
  assert not caplog.records  # There is nothing left to void.


def test_process_0_alone_removes_them(saved, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  stage_lib.void_later_stages(run_in(saved), CONFIG.stages[0], 2)
  assert folders(saved) == ['base', 'gft', 'grpo', 'other']


def test_a_stage_without_a_checkpoint_begins_at_position_0(tmp_path):
  run, job = run_in(tmp_path), job_of(first_step=5)
  run.recorder.valid_bytes = 77  # what an earlier stage vouches for
  begun = stage_lib.restore(run, job)
  assert begun.step == 0 and begun.position == Position({'at': 0})
  assert begun.batches.get_state() == {'at': 0}
  assert begun.state.params['w'] == 1 and begun.state.step == 0
  assert begun.reference is None and run.engine.copied == []
  assert run.recorder.valid_bytes == 77
  # Prompts of the seed of the run and of the steps of all ancestors.
  assert job.dataset.asked == [(6, 40 + 5, 0, 1)]
  assert run.engine.asked == [(job.config.optimizer, 30)]


def test_a_stage_goes_on_from_its_newest_checkpoint(tmp_path):
  position = Position(
    {'at': 12}, metrics_bytes=345, spent=Spent(6, 7.5), finished=True
  )
  save_at(tmp_path, 'base', 2, 0.25, position)
  run, job = run_in(tmp_path), job_of()
  begun = stage_lib.restore(run, job)
  assert begun.step == 2 and begun.position == position
  assert begun.state.params['w'] == 0.25 and begun.state.step == 2
  assert begun.batches.get_state() == {'at': 12}
  assert run.recorder.valid_bytes == 345


def test_a_stage_starts_from_the_result_of_another(tmp_path):
  save_at(tmp_path, 'base', 3, 0.5, Position({'at': 9}, metrics_bytes=345))
  run, job = run_in(tmp_path), job_of(CONFIG.stages[1])
  begun = stage_lib.restore(run, job)
  assert begun.state.params['w'] == 0.5
  # Its parameters alone: neither its step nor its place in the data.
  assert begun.step == begun.state.step == 0
  assert begun.position == Position({'at': 0})
  assert run.recorder.valid_bytes == 0
  with pytest.raises(ConfigError, match='no checkpoint that verifies'):
    run.result_of('gft')
  assert run.result_of('')['w'] == 1


def test_the_reference_of_a_kl_is_a_copy_of_where_the_stage_started(tmp_path):
  save_at(tmp_path, 'base', 3, 0.5, Position({'at': 9}))
  save_at(tmp_path, 'gft', 1, 0.125, Position({'at': 3}))
  run = run_in(tmp_path)
  begun = stage_lib.restore(
    run, job_of(CONFIG.stages[1], loss=LossConfig(kl_weight=0.1))
  )
  assert begun.state.params['w'] == 0.125 and begun.reference['w'] == 0.5
  assert begun.reference is not run.engine.copied[0]


@flax.struct.dataclass
class Trained:
  """Stands in the place of a train state: how many updates made it."""

  params: int


class Steps(Engine):
  """Each update adds 1; its loss is the number of the update."""

  loss = staticmethod(float)

  def key(self, stream, step):
    return stream, step

  def update(self, state, batch, reference, objective, settings):
    del batch, objective, settings
    self.asked.append((state.params, reference))
    done = Trained(state.params + 1)
    value = WeightedMean(jnp.float32(self.loss(done.params)), jnp.float32(1))
    return done, {'loss': value, 'grad_norm': value}, {}


@pytest.fixture
def rollouts(monkeypatch):
  """What the collector is asked for; each rollout trains four tokens."""
  asked = []

  class Collector:
    def __init__(self, engine, settings, objective, clock):
      self.clock, self.tally = clock, Tally()

    def collect(self, params, batches, key, name):
      asked.append((params, key, name))
      self.clock.add('time/sample', 2.0)
      batch = groups.build(
        Prompts(np.ones((1, 1)), np.ones(1), np.zeros(1)),
        Responses(np.ones((1, 1, 4)), np.full((1, 1), 4), np.zeros((1, 1, 4))),
        np.full((1, 1), SELF),
        np.zeros((1, 1)),
      )
      return batch, {'train/tokens': 4, 'train/truncated_fraction': 0.5}

  monkeypatch.setattr(stage_lib, 'Collector', Collector)
  return asked


def begun_at(step, reference=None):
  return Begun(step, Trained(step), reference, Batches(), Position({'at': 0}))


def test_the_steps_that_are_left_are_dispatched_one_by_one(tmp_path, rollouts):
  run, job = run_in(tmp_path, Steps()), job_of(first_step=100)
  steps = stage_lib.training_steps(run, job, begun_at(1, 'reference'))
  assert rollouts == []
  first = next(steps)
  assert (first.number, first.state.params, first.tokens) == (2, 2, 4)
  assert rollouts == [(1, ('sample', 102), 'base/2')]
  (last,) = steps
  assert (last.number, last.state.params) == (3, 3)
  # The policy that answers is the one that the last step has made.
  assert rollouts[1] == (2, ('sample', 103), 'base/3')
  assert run.engine.asked == [(1, 'reference'), (2, 'reference')]


def test_the_record_of_a_step_has_its_numbers_and_its_seconds(
  tmp_path, rollouts
):
  run, job = run_in(tmp_path, Steps()), job_of()
  step = next(stage_lib.training_steps(run, job, begun_at(1)))
  record = step.read()
  assert (
    record.items()
    >= {
      'stage': 'base',
      'step': 2,
      'train/tokens': 4,
      'train/truncated_fraction': 0.5,
      'train/loss': 2.0,
      'train/grad_norm': 2.0,
      'time/sample': 2.0,
    }.items()
  )
  assert {'time/update', 'memory/host_peak_mb'} <= {*record}


def test_the_rate_of_a_step_is_that_of_its_first_update(tmp_path, rollouts):
  """A warm-up of 8 updates, 4 a step: steps begin at 0, 4/8 and the peak."""
  optimizer = OptimizerConfig(
    learning_rate=0.5, warmup_steps=8, mini_batches=4, schedule='constant'
  )
  job = job_of(optimizer=optimizer)
  steps = stage_lib.training_steps(run_in(tmp_path, Steps()), job, begun_at(0))
  rates = [step.read()['train/learning_rate'] for step in steps]
  assert rates == [0.0, 0.25, 0.5]


def test_a_loss_that_is_not_finite_is_an_error_when_it_is_read(
  tmp_path, rollouts
):
  engine = Steps()
  engine.loss = lambda done: np.nan
  step = next(
    stage_lib.training_steps(run_in(tmp_path, engine), job_of(), begun_at(0))
  )
  with pytest.raises(NonFiniteError, match='base'):
    step.read()


@pytest.mark.parametrize(
  'samples, profile, waits',
  [(2, '', True), (0, '', False), (0, 'base:2..2', False)],
)
def test_a_step_is_waited_for_where_the_next_samples(
  tmp_path, rollouts, monkeypatch, samples, profile, waits
):
  waited = []
  monkeypatch.setattr(jax, 'block_until_ready', waited.append)
  job = job_of(group=GroupConfig(experts=1, teachers=0, samples=samples))
  run = run_in(tmp_path, Steps(), profile)
  next(stage_lib.training_steps(run, job, begun_at(0)))
  assert bool(waited) == waits


@pytest.mark.parametrize(
  'wait, best, keep_best',
  [(True, '', False), (False, 'eval/test/avg@4', True)],
)
def test_a_save_has_the_position_and_its_seconds_belong_to_no_step(
  tmp_path, wait, best, keep_best
):
  asked = []
  saver = types.SimpleNamespace(
    save=lambda *args, **options: asked.append((args, options)),
    wait=lambda: asked.append('waited'),
  )
  run = run_in(tmp_path)._replace(saver=saver)
  job = job_of(CONFIG.stages[1], checkpoint=CheckpointConfig(keep=7, best=best))
  position = Position({'at': 3}, metrics_bytes=12)
  step = Step(2, Trained(2), dict, 4)
  stage_lib.save(run, job, step, position, wait=wait)
  assert asked[0] == (
    (tmp_path / 'checkpoints/gft', 2, Trained(2), position.to_json()),
    {'keep': 7, 'keep_best': keep_best},
  )
  assert asked[1:] == ['waited'] * wait
  assert 'time/save' in run.recorder.unreported_times.record()


GRADED = {'train/tokens': 9, 'train/zero_variance_groups': 1.0}


@pytest.mark.parametrize(
  'record, failed, why',
  [
    ({'train/tokens': 0}, {}, 'no token trains'),
    ({'train/tokens': 9}, {}, 'no token has a loss with a slope'),
    (
      GRADED | {'train/zero_variance_groups': 0.5},
      {},
      'rewards differ, but no token has a loss with a slope',
    ),
    (
      GRADED | {'train/reward': 1.0},
      {},
      'in every group all rewards are equal (their mean is 1)',
    ),
    (
      GRADED | {'train/reward': 0.0, 'train/truncated_fraction': 1.0},
      {},
      'no sampled answer ended within data.max_response tokens',
    ),
    (
      GRADED | {'train/reward': 0.0},
      {'exact': {'parse': Failure(8, "no box, of the answer 'x'")}},
      'the reward exact failed for all answers (8 parse; the first: no box, of',
    ),
  ],
)
def test_a_gradient_of_0_has_a_reason(record, failed, why):
  tally = Tally()
  tally.add(8, failed)
  assert why in stage_lib.why_no_gradient(record, tally)


def test_a_gradient_of_0_is_warned_of_once_a_stage(tmp_path, rollouts, caplog):
  engine, job = Steps(), job_of()
  engine.loss = lambda done: float(done > 2)  # steps 1 and 2 of 3
  run = run_in(tmp_path, engine)
  records = [s.read() for s in stage_lib.training_steps(run, job, begun_at(0))]
  assert [r['train/grad_norm'] for r in records] == [0, 0, 1]
  (warning,) = caplog.records
  said = 'stage base, step 1: the gradient is exactly 0'
  assert said in warning.getMessage()
