"""The pages do what they say: their code runs and prints what stands below."""

import math
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
    printed = capsys.readouterr().out.split()
    for word, said in zip(printed, expected.split(), strict=True):
      assert word == said or close(word, said), (word, said)


def close(word, said):
  """Two numbers whose last digits may differ between machines."""
  numbers = all(re.fullmatch(NUMBER, text) for text in (word, said))
  return numbers and math.isclose(float(word), float(said), rel_tol=2e-3)
