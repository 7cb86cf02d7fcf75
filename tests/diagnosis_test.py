"""Measures of the diagnosis, on tokens whose probabilities are known."""

import numpy as np
import pytest

from gft_jax import diagnosis
from gft_jax.config import override


def tokens_with(probabilities, row):
  count = len(probabilities)
  zeros = np.zeros(count, int)
  return diagnosis.Tokens(
    logp=np.log(np.array(probabilities, np.float32)),
    gradient=np.ones(count, np.float32),
    likeliest=zeros,
    token=zeros,
    end=np.zeros(count, bool),
    row=np.array(row),
    position=zeros,
  )


def test_weights_of_known_probabilities():
  tokens = tokens_with([0.5, 0.9, 0.001, 0.25], [0, 0, 1, 1])
  found = diagnosis.weights(tokens, tau=0.7)
  assert found['1/p']['largest'] == pytest.approx(1000, rel=1e-3)
  curve = found['rectified fraction']
  assert (curve['0.0'], curve['0.3'], curve['1.0']) == (0, 0.5, 1)
  shares = found['share of the top 1 % of tokens']
  weight = shares['in the weight on grad p']
  # 1000 of 2 + 1.11 + 1000 + 4; rectified, each token weighs 1 or 1/0.9.
  assert weight['sft'] == pytest.approx(1000 / 1007.1, rel=1e-3)
  assert weight['dft'] == pytest.approx(0.25)
  assert weight['gft'] == pytest.approx(1.111 / 4.111, rel=1e-3)


def test_the_likelihood_of_whole_answers():
  tokens = tokens_with([0.1, 0.1, 0.01, 0.1], [0, 0, 1, 1])
  found = diagnosis.likelihood(tokens)
  assert list(found.values()) == pytest.approx([-2.5, -2], rel=1e-4)


def test_probabilities_of_the_end():
  found = diagnosis.describe(np.log([0.05, 0.5, 0.95]))
  assert list(found.values()) == pytest.approx([0.5, 0.5, 1 / 3])


def test_every_stage_starts_from_the_model():
  config = diagnosis.config_of('', '', 3)
  assert {(s.start, s.steps) for s in config.stages} == {('', 3)}
  assert [s.objective for s in config.stages] == [
    *('sft', 'dft', 'dft', 'gft', 'gft')
  ]


def test_batches_of_demonstrations_are_as_large_as_what_is_asked():
  config = diagnosis.config_of('', '', 3)
  assert diagnosis.rows_of_batch(range(99), config) == 32
  assert diagnosis.rows_of_batch(range(5), config) == 5
  wide = override(override(config, 'mesh.fsdp=4'), 'eval.prompts=33')
  assert diagnosis.rows_of_batch(range(99), wide) == 20
