"""The pages do what they say: their code runs and prints what stands below."""

import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
DERIVATION = ROOT / 'gft_jax' / 'ops' / 'README.md'

# A block of Python and, where one follows at once, what it prints.
BLOCK = r'```python\n(.*?)```(?:\n```text\n(.*?)```)?'
NUMBER = r'[+-]?\d+\.?\d*(e[+-]?\d+)?'


@pytest.fixture
def session():
  """The defaults of JAX in a user's session; ours stand again afterwards."""
  wide = jax.config.jax_enable_x64
  with jax.numpy_rank_promotion('allow'):
    yield
  jax.config.update('jax_enable_x64', wide)


def test_the_derivation_prints_what_it_says(session, capsys):
  names = {}
  blocks = re.findall(BLOCK, DERIVATION.read_text(), re.S)
  assert sum(bool(expected) for _, expected in blocks) == 11
  for code, expected in blocks:
    exec(code, names)
    printed = values(capsys.readouterr().out)
    # The last digit may differ between machines.
    assert printed == pytest.approx(values(expected), rel=2e-3)


def values(text):
  """The words of a text, its numbers as numbers."""
  return [float(w) if re.fullmatch(NUMBER, w) else w for w in text.split()]
