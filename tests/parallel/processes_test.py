"""How a process joins the others; whole runs are in tests/processes_test.py."""

import jax
import pytest

from gft_jax.config import ConfigError
from gft_jax.parallel import processes


class TestInitializeProcesses:
  @pytest.fixture(autouse=True)
  def calls(self, monkeypatch):
    calls = []
    cached = jax.config.jax_enable_compilation_cache
    monkeypatch.setattr(
      jax.distributed, 'initialize', lambda *args, **_: calls.append(args)
    )
    for name in (
      'GFT_JAX_PROCESSES',
      'JAX_COORDINATOR_ADDRESS',
      'JAX_NUM_PROCESSES',
      'JAX_PROCESS_ID',
    ):
      monkeypatch.delenv(name, raising=False)
    yield calls
    jax.config.update('jax_enable_compilation_cache', cached)

  def test_alone(self, calls):
    processes.initialize_processes()
    assert calls == []

  def test_described(self, calls, monkeypatch):
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'localhost:1234')
    with pytest.raises(ConfigError, match='JAX_NUM_PROCESSES, JAX_PROCESS_ID'):
      processes.initialize_processes()
    monkeypatch.setenv('JAX_NUM_PROCESSES', '4')
    monkeypatch.setenv('JAX_PROCESS_ID', '3')
    processes.initialize_processes()
    assert calls == [('localhost:1234', 4, 3)]
    assert not jax.config.jax_enable_compilation_cache

  def test_a_count_that_is_no_number_is_refused(self, calls, monkeypatch):
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'localhost:1234')
    monkeypatch.setenv('JAX_NUM_PROCESSES', 'two')
    monkeypatch.setenv('JAX_PROCESS_ID', '1')
    with pytest.raises(ConfigError, match=r"JAX_NUM_PROCESSES='two' .*numbers"):
      processes.initialize_processes()
    assert calls == []

  def test_found(self, calls, monkeypatch):
    monkeypatch.setenv('GFT_JAX_PROCESSES', 'auto')
    processes.initialize_processes()
    assert calls == [()]
