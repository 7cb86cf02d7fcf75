"""Claims of the paper, and how they are judged."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from gft_jax.report import tables
from gft_jax.report.comparison import interval


class Claim(NamedTuple):
  """A sentence, and by how much it holds here.

  Attributes:
    text: the sentence.
    margins: per seed, above 0 where it holds; paired, for the arms of a seed
      share base policy, task data and held-out prompts.
    paper: whether the paper says so.
  """

  text: str
  margins: Sequence[float] | np.ndarray
  paper: bool = True

  def verdict(self) -> str:
    """Whether the 95 % interval of the margin leaves out 0, and on what side."""
    mean, reach = interval(self.margins)
    if math.isnan(mean):
      return 'diverged'
    if len(self.margins) == 1:
      return 'cannot be seen (one seed)'
    if abs(mean) <= reach:
      return 'cannot be seen at this scale'
    if self.paper:
      return 'reproduces' if mean > 0 else 'does not reproduce'
    return 'holds' if mean > 0 else 'does not hold'

  def sentence(self) -> str:
    """The claim, its verdict and the interval of its margin."""
    mean, reach = interval(self.margins)
    known = f'{mean:+.3f}' + ('' if math.isnan(reach) else f' ± {reach:.3f}')
    return f'{self.text}: **{self.verdict()}** ({known})'


class Item(NamedTuple):
  """A figure or table of the paper, from our runs.

  Attributes:
    title: what the paper calls it, and what it shows.
    paper: what the paper found, in numbers where it prints some.
    table: our numbers.
    claims: what is judged.
    figure: None for a table.
    note: what else one must know.
  """

  title: str
  paper: str
  table: tables.Table
  claims: Sequence[Claim]
  figure: Figure | None = None
  note: str = ''
