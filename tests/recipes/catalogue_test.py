"""What `--config NAME_OR_FILE` finds."""

import pathlib
import subprocess
import sys

import pytest

from gft_jax import recipes
from gft_jax.config import Config, ConfigError

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / 'experiments' / 'configs'
FILES = {
  str(path.relative_to(CONFIGS).with_suffix('')): path
  for path in CONFIGS.rglob('*.py')
}


@pytest.mark.parametrize('name', recipes.NAMES)
def test_every_name_has_settings(name):
  assert isinstance(recipes.find(name).config, Config)
  assert recipes.load(name) == recipes.find(name)


@pytest.mark.parametrize('name', sorted({*FILES} & {*recipes.NAMES}))
def test_a_file_says_what_its_name_says(name):
  found = recipes.load(str(FILES[name]))
  assert found.config == recipes.find(name).config
  assert bool(found.claims) == bool(recipes.find(name).claims)


def test_the_files_of_the_paper_and_the_quickstart_stay():
  kept = {name for name in recipes.NAMES if not name.startswith('embedded/')}
  assert kept <= {*FILES}
  # Three show what a config file looks like.
  shown = {name for name in FILES if name.startswith('embedded/')}
  assert shown == {'embedded/sft', 'embedded/gft', 'embedded/grpo'}


@pytest.mark.parametrize(
  'call, name, nearest',
  [
    (recipes.find, 'embeded/gft', 'embedded/gft'),
    (recipes.find, 'quikstart', 'quickstart'),
    (recipes.load, 'paper/psf', 'paper/psft'),
    (recipes.load, 'experiments/configs/embedded/dapo.py', 'embedded/dapo'),
  ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(call, name, nearest):
  with pytest.raises(ConfigError) as error:
    call(name)
  message = str(error.value)
  assert name in message and message.endswith(f'did you mean {nearest}?')
  assert '\n' not in message


def test_a_file_without_settings_is_one_line(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('STEPS = 3\n')
  with pytest.raises(ConfigError, match=r'it has no get_config\(\)'):
    recipes.load(str(path))


def test_recipes_import_no_jax():
  """A script's --help is instant."""
  script = (
    'import sys, gft_jax.recipes;'
    'print(*{"jax", "numpy", "flax"} & {*sys.modules})'
  )
  found = subprocess.run(
    [sys.executable, '-c', script],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert found.stdout.strip() == ''
