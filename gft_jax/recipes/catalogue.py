"""Recipes by name, and config files by path."""

import functools
import pathlib
import runpy
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from gft_jax.config import Config, ConfigError, nearest
from gft_jax.recipes import embedded, paper, quickstart

# Stage -> its last evaluation, in; sentence -> whether it holds, out.
Claims: TypeAlias = Callable[[dict[str, dict[str, float]]], dict[str, bool]]


class Recipe(NamedTuple):
  """What a recipe says.

  Attributes:
    config: the settings of the run.
    claims: what is predicted of its evaluations, or None.
  """

  config: Config
  claims: Claims | None = None


_CONFIGS: dict[str, Callable[[], Config]] = {
  'quickstart': quickstart.get_config,
  **{
    f'embedded/{arm}': functools.partial(embedded.recipe, arm)
    for arm in embedded.ARMS
  },
  **{f'paper/{name}': make for name, make in paper.RECIPES.items()},
}
_CLAIMS: dict[str, Claims] = {'quickstart': quickstart.claims}

NAMES = tuple(_CONFIGS)


def find(name: str) -> Recipe:
  """The recipe of one of NAMES.

  Raises:
    ConfigError: there is no such recipe; names the nearest.
  """
  if name not in _CONFIGS:
    raise ConfigError(f'there is no recipe {name!r}' + nearest(name, NAMES))
  return Recipe(_CONFIGS[name](), _CLAIMS.get(name))


def load(name_or_file: str) -> Recipe:
  """The recipe of a name, or of a config file, which is executed.

  A file has get_config() -> Config and may have claims(evaluations), as
  `Recipe` says.

  Raises:
    ConfigError: no such recipe or file; names the nearest recipe. Or a file
      without get_config().
  """
  if name_or_file in _CONFIGS:
    return find(name_or_file)
  file = pathlib.Path(name_or_file)
  if not file.is_file():
    raise ConfigError(
      f'--config {name_or_file}: no such file, and no recipe of that name'
      + nearest(name_or_file, NAMES)
    )
  names = runpy.run_path(str(file))
  if 'get_config' not in names:
    raise ConfigError(f'--config {name_or_file}: it has no get_config()')
  return Recipe(names['get_config'](), names.get('claims'))
