"""How the cost grows with G, T, P, V and B: one figure.

  python experiments/speed/growth.py --out growth.png

Each curve changes one number of the base shape (B 2, G 8, P 256, T 128, V 8,192,
width 256, 4 layers, float32). Panels: the training step, a rollout, and the
prompt's part of a rollout, which is a rollout of one token. Points are medians
of --turns calls after a warm-up; those of a curve take turns.
"""

import argparse
import json
import statistics
import time

import rollout
import train_step

BASE = {'prompts': 2, 'group': 8, 'prompt': 256, 'tokens': 128, 'vocab': 8192}
LETTERS: dict[str, str] = dict(zip(BASE, 'BGPTV'))
FACTORS = (0.25, 0.5, 1, 2)


def shape(**changes) -> argparse.Namespace:
  """The base shape under the changes."""
  return argparse.Namespace(
    **(BASE | changes),
    layers=4,
    mean=0,
    stops=0,
    chunk=512,
    preset='',
    dtype='float32',
  )


def curve(make, turns: int, name: str, **fixed) -> dict[int, float]:
  """Value of `name` -> median seconds of a call, of points that take turns."""
  import jax

  values = sorted({max(1, int(BASE[name] * factor)) for factor in FACTORS})
  runs = {value: make(shape(**fixed | {name: value})) for value in values}
  seconds = {value: [] for value in values}
  for turn in range(turns + 2):
    for value, run in runs.items():
      start = time.perf_counter()
      run()
      if turn > 1:  # The first compiles, the second warms up.
        seconds[value].append(time.perf_counter() - start)
  jax.clear_caches()
  return {value: statistics.median(taken) for value, taken in seconds.items()}


def curves(make, turns: int, names, **fixed) -> dict[str, dict[int, float]]:
  """Letter -> curve."""
  return {LETTERS[name]: curve(make, turns, name, **fixed) for name in names}


def draw(panels: dict[str, dict[str, dict[int, float]]], out: str) -> None:
  import matplotlib
  from matplotlib.figure import Figure

  from gft_jax.report import figures

  styles = dict(
    zip(
      LETTERS.values(),
      zip(
        (
          figures.BLUE,
          figures.GREEN,
          figures.ORANGE,
          figures.VERMILLION,
          'black',
        ),
        'osD^v',
      ),
    )
  )
  base = {LETTERS[name]: value for name, value in BASE.items()}
  with matplotlib.rc_context(figures.STYLE):
    figure = Figure(figsize=(9, 3.2))
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, found) in zip(axes, panels.items()):
      ends = FACTORS[0], FACTORS[-1]
      axis.plot(ends, ends, color=figures.GREY, ls=':', label='proportional')
      for letter, points in found.items():
        colour, marker = styles[letter]
        middle = points[base[letter]]
        axis.plot(
          [value / base[letter] for value in points],
          [seconds / middle for seconds in points.values()],
          color=colour,
          marker=marker,
          ms=4,
          label=f'{letter} ({base[letter]:,})',
        )
      axis.set(title=title, xlabel='times the base shape')
      axis.set_xscale('log', base=2)
      axis.set_yscale('log', base=2)
      for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter('{x:g}')
    axes[0].set_ylabel('times the seconds at the base shape')
    axes[0].legend()
    figure.savefig(out)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--turns', type=int, default=7)
  parser.add_argument('--out', default='growth.png')
  options = parser.parse_args()
  turns = options.turns
  panels = {
    'training step': curves(train_step.ours, turns, BASE),
    'rollout': curves(rollout.ours, turns, BASE),
    'prompt of a rollout': curves(
      rollout.ours, turns, ('group', 'prompt'), tokens=1
    ),
  }
  print(json.dumps({'benchmark': 'growth', 'seconds': panels}))
  for title, found in panels.items():
    for letter, points in found.items():
      row = ', '.join(f'{k:,}: {1000 * v:.0f} ms' for k, v in points.items())
      print(f'| {title} | {letter} | {row} |')
  draw(panels, options.out)


if __name__ == '__main__':
  main()
