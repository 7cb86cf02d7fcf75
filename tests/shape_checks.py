"""Shapes are checked while tests run: jaxtyping's import hook, with beartype.

`install` comes before gft_jax is imported, in conftest.py. Functions are
checked and constructors are not: a GroupBatch also carries shardings,
ShapeDtypeStructs or NumPy arrays in the place of its arrays.
"""

import sys
from collections.abc import Callable

import beartype
import jaxtyping

CHECKED = (
  'gft_jax.batch',
  'gft_jax.models',
  'gft_jax.ops',
  'gft_jax.rollout',
  'gft_jax.training',
)


# As type checkers have it, an int is a float.
CONF = beartype.BeartypeConf(is_pep484_tower=True)


def check(function: Callable) -> Callable:
  """The typechecker that the hook gives each function and each dataclass.

  Of a dataclass jaxtyping asks it for `__init__`.
  """
  if function.__name__ == '__init__':
    return function
  return beartype.beartype(function, conf=CONF)


def install() -> None:
  early = [name for name in CHECKED if name in sys.modules]
  assert not early, f'imported before the shapes are checked: {early}'
  jaxtyping.install_import_hook(CHECKED, 'shape_checks.check')
