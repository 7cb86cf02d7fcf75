"""Eight CPU devices before jax is imported: chex's pmap variant and every
mesh test are skipped silently on one."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import pathlib  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """The folder of real data beside the checkout, or a skip with the reason."""
  path = pathlib.Path(__file__).parents[2] / 'shared'
  if not (path / 'data').is_dir():
    pytest.skip(f'no real data at {path / "data"}')
  return path
