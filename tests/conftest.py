"""Settings that must stand before jax is imported."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Eight devices: on one, chex's pmap variant and every mesh test would be
# skipped silently. The rest compiles a tiny gradient in a quarter of the time.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
    '--xla_cpu_use_fusion_emitters=false',
  ]
)

import pathlib

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """The folder of real data beside the checkout, or a skip with the reason."""
  path = pathlib.Path(__file__).parents[2] / 'shared'
  if not (path / 'data').is_dir():
    pytest.skip(f'no real data at {path / "data"}')
  return path
