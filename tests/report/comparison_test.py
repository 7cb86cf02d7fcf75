"""Arms side by side."""

import json
import math

import pytest

from gft_jax.report import comparison


def test_a_table_is_of_what_every_seed_has_measured():
  """Failures are counted where they occurred."""
  runs = [{'a': 1.0, 'failures/parse': 2}, {'a': 3.0}, {'a': 2.0}]
  table = comparison.summarize({'arm': runs, 'diverged': []})
  assert set(table) == {'arm'} and set(table['arm']) == {'a'}
  mean, reach = table['arm']['a']
  # Student's t for 2 degrees of freedom is 4.303; s = 1.
  assert (mean, reach) == (2, pytest.approx(4.3027 / 3**0.5, rel=1e-4))


@pytest.mark.parametrize('svg', [False, True])
def test_files_of_a_comparison(tmp_path, svg):
  name = 'eval/test/avg@2'
  table = comparison.summarize({'gft': [{name: 0.5}]}, {name: 0.25})
  comparison.write(tmp_path, table, {'seeds': [0]}, svg=svg)
  written = {path.name for path in tmp_path.iterdir()}
  kinds = {'md', 'json', 'png', *(['svg'] if svg else [])}
  assert written == {f'comparison.{kind}' for kind in kinds}
  found = json.loads((tmp_path / 'comparison.json').read_text())
  assert found['seeds'] == [0] and list(found['arms']) == ['base', 'gft']
  # One seed has no interval, and JSON no word for NaN.
  assert found['arms']['gft'] == {name: 0.5, f'{name}_reach': None}
  lines = (tmp_path / 'comparison.md').read_text().splitlines()
  assert [line.split(' |')[0] for line in lines[2:]] == ['| base', '| gft']


def test_a_comparison_has_columns_for_mean_rewards_and_states_the_threshold():
  name = 'eval/test/avg@2'
  run = {name: 0.5, 'eval/test/mean_reward': 0.75, 'eval/test/threshold': 1.0}
  lines = comparison.markdown(comparison.summarize({'gft': [run]})).splitlines()
  assert lines[0].startswith('| arm | test | test: mean reward |')
  assert lines[2].startswith('| gft | 0.500 | 0.750 |')
  assert 'a reward of 1 or more' in lines[-1]
  same = run | {'eval/test/mean_reward': 0.5}
  text = comparison.markdown(comparison.summarize({'gft': [same]}))
  assert 'mean reward' not in text
  # Of an earlier version: avg@n is the mean reward, pass@1 the accuracy.
  old = {name: 0.75, 'eval/test/pass@1': 0.5}
  table = comparison.summarize({'gft': [old]}, old)
  assert table['gft'][name].mean == table['base'][name].mean == 0.5


def test_intervals_as_text():
  assert str(comparison.interval([0.5])) == '0.500'
  assert str(comparison.interval([0.5, 0.5])) == '0.500 ± 0.000'
  assert str(comparison.interval([math.nan, 1.0])) == '–'
