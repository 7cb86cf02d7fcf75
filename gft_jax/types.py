"""Types that signatures share.

Shapes stand in signatures, `Float[Array, 'B G T']`; `batch.py` has the axes.
They are checked while tests run (see tests/conftest.py), and cost nothing in a
run.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import jax
import numpy as np

# Batches are NumPy on the host and JAX on a device.
Array: TypeAlias = jax.Array | np.ndarray
# A plain pytree of parameters: names -> arrays, or -> further names.
Params: TypeAlias = Mapping[str, object]
# A tree of arrays; what comes back has the same structure.
Tree = TypeVar('Tree')

# metrics.jsonl: 'stage', 'step', and 'group/name' -> finite number.
Record: TypeAlias = dict[str, Any]
# A part of a record, numbers alone.
Numbers: TypeAlias = dict[str, float]
# What JSON can say.
Json: TypeAlias = dict[str, Any]


@runtime_checkable
class Tokenizer(Protocol):
  """What turns tokens into text; transformers' tokenizers do."""

  def decode(
    self, token_ids: list[int] | np.ndarray, skip_special_tokens: bool = False
  ) -> str | list[str]:
    """The text of one answer, a str, or of several."""
    ...

  def batch_decode(
    self, sequences: list[list[int]], skip_special_tokens: bool = False
  ) -> list[str]:
    """The text of each of several answers."""
    ...


@runtime_checkable
class Model(Protocol):
  """A model by its entrances, the methods that `apply` names.

  models.transformer has all of them; a table of known probabilities needs only
  those that are called.
  """

  def apply(
    self, variables: Mapping[str, Params], *arguments: Any, method: str
  ) -> Any:
    """Calls the entrance `method` with these parameters."""
