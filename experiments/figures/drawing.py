"""What the figures share: colours, means with intervals, one legend."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gft_jax.report import figures
from gft_jax.report.comparison import interval

COLOURS = {
  'sft': figures.VERMILLION,
  'grpo': figures.BLUE,
  'gft': figures.GREEN,
  'gft_no_dcr': figures.PURPLE,
  'gft_no_gal': figures.ORANGE,
}


def points(
  ax: Axes,
  places: Sequence[float] | np.ndarray,
  values: Sequence[np.ndarray],
  *,
  color: str,
  fmt: str = 'o',
  mfc: str | None = None,
  label: str | None = None,
  horizontal: bool = False,
) -> None:
  """Means over seeds with their intervals, upright or lying.

  Args:
    ax: where they are drawn.
    places: of the values, on the axis of the arms.
    values: [seeds] for each place.
    color: of markers, lines and intervals.
    fmt: marker and line; 'none' draws the intervals alone.
    mfc: fills the markers; None: with `color`.
    label: for the legend; None: in no legend.
    horizontal: the arms are below each other.
  """
  means, reaches = zip(*map(interval, values))
  ax.errorbar(
    means if horizontal else places,
    places if horizontal else means,
    xerr=reaches if horizontal else None,
    yerr=None if horizontal else reaches,
    color=color,
    fmt=fmt,
    mfc=mfc,
    label=label,
    ms=4,
    capsize=2,
    lw=1.2,
  )


def band(ax: Axes, steps: np.ndarray, values: np.ndarray, **style) -> None:
  """The mean curve over seeds with its interval."""
  means, reaches = map(np.array, zip(*map(interval, values.T)))
  (line,) = ax.plot(steps, means, **style)
  ends = means - reaches, means + reaches
  ax.fill_between(steps, *ends, color=line.get_color(), alpha=0.15, lw=0)


def legend(figure: Figure, ax: Axes, columns: int = 5) -> None:
  """One legend above all panels."""
  handles, labels = ax.get_legend_handles_labels()
  figure.legend(
    handles,
    labels,
    loc='outside upper center',
    ncols=min(columns, len(labels)),
  )
