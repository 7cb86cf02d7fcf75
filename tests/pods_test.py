"""The check that a recipe fits a TPU slice; the compiler itself is not here."""

import pathlib
import sys

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[1] / 'experiments'
RECIPE = str(EXPERIMENTS / 'configs/paper/gft_qwen2_5_math_1_5b.py')


@pytest.fixture
def script(monkeypatch):
  monkeypatch.syspath_prepend(EXPERIMENTS)
  monkeypatch.syspath_prepend(EXPERIMENTS / 'pods')
  import compile_check

  yield compile_check
  sys.modules.pop('compile_check')


def test_collectives_are_counted_with_the_bytes_of_their_results(script):
  text = """
  %a = bf16[2,512]{1,0} all-gather(bf16[1,512]{1,0} %x), dimensions={0}
  %b = (f32[4]{0}, f32[8]{0}) all-reduce(f32[4]{0} %y, f32[8]{0} %z)
  %c = f32[1048576]{0} all-gather-start(f32[65536]{0} %w)
  %d = f32[4]{0} add(f32[4]{0} %y, f32[4]{0} %all-reduce.1)
  """
  found = script.collectives(text)
  assert found['all-gather'] == {'count': 2, 'mb': 4.0}
  assert found['all-reduce'] == {'count': 1, 'mb': 0.0}
  assert set(found) == {'all-gather', 'all-reduce'}


@pytest.mark.parametrize(
  'topology, words',
  [
    ('v9:4x4', 'is not one of v4, v5e, v5p, v6e'),
    ('v5e', "'v5e' is not of the form v5e:4x4"),
    ('v5e:sixteen', 'is not of the form v5e:4x4'),
  ],
)
def test_a_mistyped_topology_is_one_line(script, capsys, topology, words):
  assert script.main(['--config', RECIPE, '--topology', topology]) == 2
  error = capsys.readouterr().err
  assert words in error and error.count('\n') == 1


def test_the_shape_of_a_hub_id_is_known(script):
  import command

  config = command.load_recipe(RECIPE, []).config
  assert script.shape_of(config).width == 1536
