"""The page and the figure of a diagnosis."""

import json

import numpy as np
import pytest

from gft_jax.report import diagnosis as report

ENDS = {'mean': 0.5, 'median': 0.5, 'share below 0.1': 0.0}
DIAGNOSIS = {
  'demonstrations': 2,
  'tokens': 3,
  'tau': 0.7,
  'steps': 1,
  '1/p': {'50.0%': 2.0, 'largest': 1000.0},
  'rectified fraction': {'0.0': 0.0, '1.0': 1.0},
  'entropy per token': {'sft': 1.5},
  'probability of the end': {'model': ENDS, 'sft': ENDS},
  'largest weights': [
    {
      '1/p': 1000.0,
      'token': '\n',
      'likeliest': '|',
      'before': '7+8',
      'position': 0,
      'row': 0,
    }
  ],
}


@pytest.mark.parametrize('svg', [False, True])
def test_files_of_a_diagnosis(tmp_path, svg):
  logp = np.log(np.array([0.001, 0.5, 0.9], np.float32))
  page = report.write(tmp_path, DIAGNOSIS, logp, svg=svg)
  written = {path.name for path in tmp_path.iterdir()}
  kinds = {'json', 'md', 'png', *(['svg'] if svg else [])}
  assert written == {f'diagnosis.{kind}' for kind in kinds}
  assert json.loads((tmp_path / 'diagnosis.json').read_text()) == DIAGNOSIS
  assert (tmp_path / 'diagnosis.md').read_text() == page
  assert '2 demonstrations, 3 tokens' in page
  assert '* sft, mean: 0.5' in page
  # A cell holds no bar and no line break.
  assert '| 1,000 | `⏎` | `¦` | `7+8` |' in page
