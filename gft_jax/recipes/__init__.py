"""What `--config NAME_OR_FILE` finds: every recipe of the project by its name.

`find('embedded/gft')` gives settings, and claims where a recipe makes any.
Knows nothing but `gft_jax.config`: it imports no JAX and runs nothing.
"""

from gft_jax.recipes.catalogue import NAMES, Recipe, find, load

__all__ = ['NAMES', 'Recipe', 'find', 'load']
