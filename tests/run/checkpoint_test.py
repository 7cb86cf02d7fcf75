import contextlib
import json
import logging
import pathlib
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from gft_jax.config import MeshConfig
from gft_jax.parallel import sharding
from gft_jax.parallel.mesh import make_mesh
from gft_jax.run import checkpoint

# One object: it is part of a train state's identity.
OPTIMIZER = optax.adamw(1e-3)


def state_at(step):
  params = {
    'embedding': jnp.arange(12.0).reshape(4, 3) + step,
    'blocks': {'down': {'kernel': jnp.ones((2, 4, 2), jnp.bfloat16)}},
  }
  state = TrainState.create(apply_fn=None, params=params, tx=OPTIMIZER)
  grads = jax.tree.map(jnp.ones_like, params)
  return state.apply_gradients(grads=grads).replace(step=jnp.int32(step))


def save(directory, *steps, keep=2):
  for step in steps:
    position = {'data': {'next': step}}
    checkpoint.save(directory, step, state_at(step), position, keep=keep)


def largest_file(folder):
  return max(
    (p for p in folder.rglob('*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )


def test_round_trip_is_bit_exact(tmp_path):
  save(tmp_path, 5)
  restored = checkpoint.restore(tmp_path, state_at(0))
  assert (restored.step, restored.position) == (5, {'data': {'next': 5}})
  chex.assert_trees_all_equal(restored.state, state_at(5))
  chex.assert_trees_all_equal_dtypes(restored.state, state_at(5))
  params, step = checkpoint.restore_params(tmp_path, state_at(0).params)
  assert step == 5
  chex.assert_trees_all_equal(params, state_at(5).params)


def test_a_relative_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save(pathlib.Path('run'), 5)
  assert checkpoint.restore(pathlib.Path('run'), state_at(0)).step == 5


@pytest.mark.parametrize('name', ['gft[tau=0.7]', '[a]*'])
def test_a_step_that_could_not_be_read_does_not_count(tmp_path, name):
  """Orbax looks for what to merge by a pattern, and only warns."""
  with pytest.raises(checkpoint.SaveError, match='is not in what was written'):
    save(tmp_path / name, 1)
  assert not list((tmp_path / name).iterdir())


@pytest.mark.parametrize(
  'change, message',
  [
    ({'more': (2, 3)}, 'more is not in what was written'),
    ({'embedding': (3, 4)}, r'embedding has the shape \[4, 3\], not \(3, 4\)'),
    ({}, None),
  ],
)
def test_every_array_is_looked_for_before_a_step_counts(
  tmp_path, change, message
):
  save(tmp_path, 1)
  shapes = checkpoint._shapes(state_at(1).params)
  assert shapes == {'embedding': (4, 3), 'blocks.down.kernel': (2, 4, 2)}
  folder = tmp_path / '00000001/params/state'
  expected = (
    pytest.raises(ValueError, match=message)
    if message
    else (contextlib.nullcontext())
  )
  with expected:
    checkpoint._check_readable(folder, shapes | change)


def test_a_lost_part_of_an_array_is_missed(tmp_path):
  mesh = jax.make_mesh((2,), ('x',), axis_types=(AxisType.Auto,))
  where = NamedSharding(mesh, PartitionSpec('x'))
  params = {'w': jax.device_put(jnp.arange(8.0), where)}
  checkpoint.save(tmp_path, 1, {'params': params, 'step': 1}, {}, keep=1)
  folder = tmp_path / '00000001/params/state'
  checkpoint._check_readable(folder, {'w': (8,)})
  base = {'driver': 'file', 'path': f'{folder}/'}
  store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
  store.delete_range(tensorstore.KvStore.KeyRange('w/c/1', 'w/c/2')).result()
  with pytest.raises(ValueError, match='w has 1 of 2 parts'):
    checkpoint._check_readable(folder, {'w': (8,)})


def test_parameters_of_another_shape_are_one_line(tmp_path):
  save(tmp_path, 1)
  other = {'embedding': jnp.zeros((4, 3)), 'blocks': {'up': jnp.zeros(2)}}
  with pytest.raises(checkpoint.RestoreError, match='cannot be read') as error:
    checkpoint.restore_params(tmp_path, other)
  assert '\n' not in str(error.value)


def test_a_directory_with_dots_in_its_path(tmp_path):
  (tmp_path / 'here').mkdir()
  save(tmp_path / 'here/../there', 3)
  assert checkpoint.restore(tmp_path / 'there', state_at(0)).step == 3


def test_nothing_there(tmp_path):
  assert checkpoint.restore(tmp_path / 'none', state_at(0)) is None
  with pytest.raises(FileNotFoundError, match='no checkpoint that verifies'):
    checkpoint.restore_params(tmp_path, state_at(0).params)


def test_keeps_the_newest(tmp_path):
  save(tmp_path, 1, 2, 9, 10, keep=2)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['00000009', '00000010']


def test_restores_onto_another_mesh(tmp_path):
  save(tmp_path, 3)
  mesh = make_mesh(MeshConfig(data=2, fsdp=2))
  shardings = sharding.parameter_shardings(state_at(0), mesh)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state_at(0),
    shardings,
  )
  restored = checkpoint.restore(tmp_path, abstract).state
  chex.assert_trees_all_equal(
    jax.tree.map(np.asarray, restored), jax.tree.map(np.asarray, state_at(3))
  )
  kernel = restored.params['blocks']['down']['kernel']
  expected = shardings.params['blocks']['down']['kernel']
  assert kernel.sharding.spec == expected.spec
  assert not kernel.sharding.is_fully_replicated


def flip_bit(folder):
  path = largest_file(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  return f'{path.relative_to(folder)} is damaged'


def test_orbax_alone_loads_a_flipped_bit_without_a_word(tmp_path):
  """Why there is a manifest; if this fails, there need be none."""
  folder = tmp_path / 'params'
  params = {'w': jnp.arange(4096.0).reshape(64, 64)}
  ocp.save(folder, params)
  flip_bit(folder)
  assert not np.array_equal(ocp.load(folder)['w'], params['w'])


def cut_short(folder):
  path = largest_file(folder)
  path.write_bytes(path.read_bytes()[:-1])
  return f'{path.relative_to(folder)} is damaged'


def lose_a_file(folder):
  path = largest_file(folder)
  path.unlink()
  return f'{path.relative_to(folder)} is missing'


def no_manifest(folder):
  (folder / checkpoint.MANIFEST).unlink()
  return 'the save did not finish'


def broken_manifest(folder):
  (folder / checkpoint.MANIFEST).write_text('{"a": ')
  return 'manifest.json is damaged'


def stray_file(folder):
  (folder / 'stray').write_text('')
  return 'stray does not belong to it'


def other_position(folder):
  (folder / 'position.json').write_text(json.dumps({'data': {'next': 4}}))
  return 'position.json is damaged'


@pytest.mark.parametrize(
  'damage',
  [
    flip_bit,
    cut_short,
    lose_a_file,
    no_manifest,
    broken_manifest,
    stray_file,
    other_position,
  ],
)
def test_a_damaged_step_is_named_and_the_one_before_is_used(
  tmp_path, caplog, damage
):
  save(tmp_path, 1, 2)
  message = damage(tmp_path / '00000002')
  with caplog.at_level(logging.WARNING):
    restored = checkpoint.restore(tmp_path, state_at(0))
  assert restored.step == 1
  assert '00000002' in caplog.text and message in caplog.text
  chex.assert_trees_all_equal(restored.state, state_at(1))


def test_a_damaged_step_is_written_again(tmp_path):
  save(tmp_path, 1, 2)
  no_manifest(tmp_path / '00000002')
  save(tmp_path, 2)
  assert checkpoint.restore(tmp_path, state_at(0)).step == 2


def test_damaged_later_steps_do_not_push_out_good_ones(tmp_path):
  """A resumed run saves below those that it has passed over."""
  save(tmp_path, 20, 30, 40, keep=3)
  for step in ('00000030', '00000040'):
    flip_bit(tmp_path / step)
  assert checkpoint.restore(tmp_path, state_at(0)).step == 20
  save(tmp_path, 21, keep=2)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['00000020', '00000021']
  assert checkpoint.restore(tmp_path, state_at(0)).step == 21


def test_a_damaged_best_is_not_kept_for_a_good_one(tmp_path):
  save_scored(tmp_path, {1: 0.5, 2: 0.75})
  flip_bit(tmp_path / '00000002')
  save_scored(tmp_path, {3: 0.6, 4: 0.1})
  assert sorted(p.name for p in tmp_path.iterdir()) == ['00000003', '00000004']


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
  """The saved state is donated, and the manifest waits for every file."""
  release = threading.Event()
  digests = checkpoint._digests

  def held(folder):
    release.wait(30)
    return digests(folder)

  update = jax.jit(
    lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0
  )
  state = update(state_at(2))
  expected = jax.tree.map(np.array, state)
  with checkpoint.Saver() as saver:
    saver.save(tmp_path, 1, state, {}, keep=2)
    saver.wait()
    monkeypatch.setattr(checkpoint, '_digests', held)
    saver.save(tmp_path, 2, state, {}, keep=2)
    for _ in range(20):
      state = update(state)
    jax.block_until_ready(state)
    # A kill now leaves the one before.
    assert not (tmp_path / '00000002' / checkpoint.MANIFEST).exists()
    release.set()
  restored = checkpoint.restore(tmp_path, state_at(0))
  assert restored.step == 2
  chex.assert_trees_all_equal(restored.state, expected)


def test_what_goes_wrong_in_the_background_is_said_at_the_next_save(
  tmp_path, monkeypatch
):
  def full(path, text):
    raise OSError('no space left')

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'write_whole', full)
    with pytest.raises(checkpoint.SaveError, match=r'00000001 .*no space left'):
      with checkpoint.Saver() as saver:
        saver.save(tmp_path, 1, state_at(1), {}, keep=1)
        with pytest.raises(checkpoint.SaveError, match='00000001 could not'):
          saver.save(tmp_path, 2, state_at(2), {}, keep=1)
        saver.save(tmp_path, 1, state_at(1), {}, keep=1)
  assert not list(tmp_path.iterdir())


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_save(
  tmp_path, monkeypatch
):
  def full(path, text):
    raise OSError('no space left')

  monkeypatch.setattr(checkpoint, 'write_whole', full)
  with pytest.raises(FloatingPointError, match='step 3'):
    with checkpoint.Saver() as saver:
      saver.save(tmp_path, 1, state_at(1), {}, keep=1)
      raise FloatingPointError('step 3')


def save_scored(directory, scores, *, keep=1):
  with checkpoint.Saver() as saver:
    for step, score in scores.items():
      position = {'score': score} if score is not None else {}
      saver.save(
        directory, step, state_at(step), position, keep=keep, keep_best=True
      )


def test_the_best_is_kept_beside_the_newest(tmp_path):
  """Of equals the earliest; steps without a score are never the best."""
  save_scored(tmp_path, {1: 0.25, 2: 0.75, 3: 0.5, 4: 0.75, 5: None})
  assert sorted(p.name for p in tmp_path.iterdir()) == ['00000002', '00000005']
  params = state_at(0).params
  found, step = checkpoint.restore_params(tmp_path, params, best=True)
  assert step == 2
  chex.assert_trees_all_equal(found, state_at(2).params)
  assert checkpoint.restore_params(tmp_path, params)[1] == 5
  save_scored(tmp_path, {6: 1.0})
  assert [p.name for p in tmp_path.iterdir()] == ['00000006']
  save_scored(tmp_path / 'equal', {1: 0.5, 2: 0.5}, keep=2)
  assert checkpoint.newest(tmp_path / 'equal', best=True).name == '00000001'


def test_a_damaged_best_gives_way_to_the_next(tmp_path, caplog):
  save_scored(tmp_path, {1: 0.5, 2: 0.75, 3: 0.25}, keep=3)
  flip_bit(tmp_path / '00000002')
  with caplog.at_level(logging.WARNING):
    found = checkpoint.newest(tmp_path, best=True)
  assert found.name == '00000001' and '00000002' in caplog.text


@pytest.mark.parametrize('writes', range(4))
def test_a_position_may_be_amended_and_the_process_killed(
  tmp_path, monkeypatch, writes
):
  save(tmp_path, 3)
  whole, left = checkpoint.write_whole, [writes]

  def write(path, text):
    if not left[0]:
      path.with_suffix('.tmp').write_text('half')
      raise KeyboardInterrupt
    left[0] -= 1
    whole(path, text)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'write_whole', write)
    with contextlib.suppress(KeyboardInterrupt):
      checkpoint.amend(tmp_path, 3, {'data': 'new'})
  restored = checkpoint.restore(tmp_path, state_at(0))
  old_or_new = {'data': {'next': 3}} if writes < 2 else {'data': 'new'}
  assert restored.position == old_or_new
  # And once more, whatever that left.
  checkpoint.amend(tmp_path, 3, {'data': 'newer'})
  assert checkpoint.restore(tmp_path, state_at(0)).position['data'] == 'newer'
  (tmp_path / '00000003/position.json').write_text('{"data": "forged"}')
  assert checkpoint.restore(tmp_path, state_at(0)) is None


def test_no_best(tmp_path):
  save(tmp_path, 1)
  with pytest.raises(FileNotFoundError, match='verifies and has a score'):
    checkpoint.restore_params(tmp_path, state_at(0).params, best=True)
