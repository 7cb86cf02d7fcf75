import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from gft_jax.config import ConfigError, MeshConfig
from gft_jax.parallel import mesh as mesh_lib
from gft_jax.parallel.mesh import (
  check_divisible,
  check_rows,
  even_rows,
  make_mesh,
  mesh_of,
  rollout_mesh,
  warn_of_idle_devices,
)


@pytest.mark.parametrize('axis', ['data', 'fsdp', 'tensor'])
def test_mesh_has_three_auto_axes_on_the_first_devices(axis):
  mesh = make_mesh(MeshConfig(**{axis: 4}))
  assert mesh.axis_names == ('data', 'fsdp', 'tensor')
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert mesh.shape[axis] == mesh.size == 4
  assert list(mesh.devices.flat) == jax.devices()[:4]


@pytest.mark.parametrize(
  ('mesh', 'sizes', 'said'),
  [
    ({}, (16, 128), '7 of 8 devices stay idle; mesh.data=8 gives prompts to 8'),
    ({}, (20, 128), '7 of 8 devices stay idle; mesh.data=4 gives prompts to 4'),
    ({'tensor': 2}, (16,), '6 of 8 .* mesh.data=4 gives prompts to 8 devices'),
    ({'fsdp': 3}, (6,), '5 of 8 .* mesh.data=2 gives prompts to 6 devices'),
    ({'data': 2}, (6,), '6 of 8 .* mesh.data=6 gives prompts to 6 devices'),
    ({}, (5, 7), '7 of 8 .* batches of 5 and 7 prompts cannot fill more'),
    ({'data': 4, 'fsdp': 2}, (16,), None),
  ],
)
def test_devices_that_stay_idle_are_named_once(mesh, sizes, said, caplog):
  warn_of_idle_devices.cache_clear()
  for _ in range(2):
    warn_of_idle_devices(MeshConfig(**mesh), *sizes)
  assert len(caplog.messages) == (said is not None)
  assert said is None or re.match(said, caplog.messages[0])


def test_a_mesh_has_the_devices_of_a_process_side_by_side():
  """In whatever order they come; jax.make_mesh would follow a TPU's torus."""
  devices = jax.devices()
  mesh = mesh_of(MeshConfig(fsdp=8), devices[4:] + devices[:4][::-1])
  assert list(mesh.devices.flat) == devices


def test_mesh_too_large_names_both_numbers():
  with pytest.raises(ConfigError, match='needs 16 devices, but there are 8'):
    make_mesh(MeshConfig(data=2, fsdp=4, tensor=2))


def test_check_divisible():
  mesh = MeshConfig(data=2, fsdp=2)
  check_divisible(16, mesh, parts=4)
  with pytest.raises(ConfigError, match=r'batch_size=16 .* multiple of 32'):
    check_divisible(16, mesh, parts=8)
  with pytest.raises(ConfigError, match=r'batch_size=6 .* multiple of 4'):
    check_divisible(6, mesh)


def test_rows_fill_the_devices_of_both_layouts():
  mesh = MeshConfig(fsdp=4, tensor=2, rollout_tensor=1)
  check_rows('eval.batch_size', 16, mesh)
  with pytest.raises(ConfigError, match=r'eval.batch_size=12 .* of the 8 dev'):
    check_rows('eval.batch_size', 12, mesh)
  with pytest.raises(ConfigError, match=r'eval.batch_size=6 .* of the 4 dev'):
    check_rows('eval.batch_size', 6, mesh)


@pytest.mark.parametrize(
  ('count', 'most', 'mesh', 'rows'),
  [
    # As large as what is asked, and no batch larger than the others.
    (8, 128, {}, 8),
    (1, 128, {}, 1),
    (128, 128, {}, 128),
    (256, 128, {}, 128),
    (130, 128, {}, 65),
    (40, 32, {}, 20),
    # What fills the devices, of the layout that asks for more.
    (8, 128, {'fsdp': 4}, 8),
    (9, 128, {'data': 2, 'fsdp': 4}, 16),
    (1, 128, {'data': 2, 'tensor': 2}, 2),
    (3, 8, {'tensor': 8, 'rollout_tensor': 2}, 4),
    (17, 8, {'fsdp': 8}, 8),
    (0, 8, {'fsdp': 2}, 2),
  ],
)
def test_batches_are_of_even_rows(count, most, mesh, rows):
  config = MeshConfig(**mesh)
  assert even_rows(count, most, config) == rows <= most
  check_rows('rows', rows, config)
  batches = -(-count // rows)
  assert batches == -(-count // most), 'as few calls as before'


def test_a_rollout_layout_divides_the_devices():
  with pytest.raises(
    ConfigError, match='rollout_tensor=3 does not divide the 8'
  ):
    MeshConfig(fsdp=8, rollout_tensor=3)


class Chip(NamedTuple):
  id: int
  process_index: int


@pytest.mark.parametrize('setting', ['tensor', 'rollout_tensor'])
def test_devices_that_share_a_prompt_are_of_one_process(setting, monkeypatch):
  """Also those of a slice that is not here (experiments/pods)."""
  monkeypatch.setattr(mesh_lib, 'Mesh', FakeMesh)
  chips = [Chip(i, i // 2) for i in range(8)]
  assert mesh_of(MeshConfig(fsdp=4, tensor=2), chips).devices.size == 8
  config = {
    'tensor': MeshConfig(fsdp=2, tensor=4),
    'rollout_tensor': MeshConfig(fsdp=8, rollout_tensor=4),
  }[setting]
  words = rf'mesh.{setting}=4: processes \[0, 1\] would hold the same prompts'
  with pytest.raises(ConfigError, match=words):
    rollout_mesh(mesh_of(config, chips), config)


class FakeMesh(NamedTuple):
  devices: np.ndarray
  axis_names: tuple[str, ...]
  axis_types: tuple


def test_the_rollout_mesh_has_the_devices_of_the_mesh_in_their_order():
  config = MeshConfig(fsdp=8, rollout_tensor=4)
  mesh = make_mesh(config)
  other = rollout_mesh(mesh, config)
  assert dict(other.shape) == {'data': 2, 'fsdp': 1, 'tensor': 4}
  assert list(other.devices.flat) == list(mesh.devices.flat)
  assert rollout_mesh(mesh, MeshConfig(fsdp=8)) is mesh
