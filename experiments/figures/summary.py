"""Every figure and table of a reproduction, written as one summary."""

import collections
import io
import json
import pathlib
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from figures import (
  experts,
  figure_1,
  figure_2,
  figure_3,
  figure_4,
  figure_5,
  figure_6,
  page,
  regimes,
  table_1,
  table_2,
  table_3,
  table_4,
  table_5,
)
from figures.prose import READING, TASK
from figures.results import Results
from figures.verdicts import Item
from gft_jax.report import figures, tables

# Each has item(results) -> Item.
ITEMS = (
  *(figure_1, figure_2, figure_3, figure_4, figure_5, figure_6),
  *(table_1, table_2, table_3, table_4, table_5),
  *(regimes, experts),
)


def read(
  runs: dict[int, Sequence[pathlib.Path]], answers: dict[int, pathlib.Path]
) -> Results:
  """What the runs of each seed, and its folder of many answers, measured."""
  return Results(
    runs,
    {
      seed: {
        path.stem: json.loads(path.read_text())
        for path in sorted(folder.glob('*.json'))
      }
      for seed, folder in answers.items()
    },
  )


def write(
  out: pathlib.Path,
  results: Results,
  about: dict[str, str],
  *,
  svg: bool = False,
) -> None:
  """Writes README.md, index.html, results.json and a PNG of each figure.

  With `svg` an SVG of each figure too.
  """
  vectors = {}
  with matplotlib.rc_context(figures.STYLE | {'font.size': 8}):
    items = {
      module.__name__.rpartition('.')[2]: module.item(results)
      for module in ITEMS
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, item in items.items():
      if item.figure:
        vectors[name] = save(item.figure, out / f'{name}.png')
        if svg:
          (out / f'{name}.svg').write_bytes(vectors[name])
  shown = results.groups({'gft': 'GFT', 'sft': 'SFT', 'grpo': 'GRPO'})
  texts = {
    'index.html': page.page(vectors, items, about, shown),
    'README.md': markdown(items, about),
    'results.json': numbers(items, about),
  }
  for name, text in texts.items():
    (out / name).write_text(text, encoding='utf-8')


def save(figure: Figure, path: pathlib.Path) -> bytes:
  """Writes a PNG, gives the SVG; the same numbers give the same bytes."""
  figure.savefig(path)
  figure.set_layout_engine('none')  # found once, it serves both
  vector = io.BytesIO()
  figure.savefig(vector, format='svg', metadata={'Date': None})
  return vector.getvalue()


def markdown(items: dict[str, Item], about: dict[str, str]) -> str:
  lines = ['# The paper on the embedded task', '', '| | |', '|---|---|']
  lines += [f'| {key} | {value} |' for key, value in about.items()]
  lines += [
    *('', TASK, '', READING, ''),
    '| claims of the paper | reproduce | do not | cannot be seen |',
    '|---|---|---|---|',
  ]
  for item in items.values():
    claims = [claim for claim in item.claims if claim.paper]
    if claims:
      counts = collections.Counter(claim.verdict() for claim in claims)
      seen = [counts['reproduces'], counts['does not reproduce']]
      cells = [item.title, *seen, counts.total() - sum(seen)]
      lines += [f'| {" | ".join(map(str, cells))} |']
  for name, item in items.items():
    lines += ['', f'## {item.title}', '']
    if item.figure:
      lines += [f'![{item.title}]({name}.png)', '']
    lines += [tables.markdown(item.table)]
    lines += [f'* {claim.sentence()}' for claim in item.claims]
    lines += ['', f'Paper: {item.paper}']
    if item.note:
      lines += ['', item.note]
  return '\n'.join(lines) + '\n'


def numbers(items: dict[str, Item], about: dict[str, str]) -> str:
  values = {
    name: {
      'title': item.title,
      'paper': item.paper,
      'table': [item.table.head, *item.table.body],
      'claims': [
        {
          'claim': claim.text,
          'of the paper': claim.paper,
          'verdict': claim.verdict(),
          'margins by seed': [float(margin) for margin in claim.margins],
        }
        for claim in item.claims
      ],
    }
    for name, item in items.items()
  }
  return json.dumps({'about': about, 'items': values}, indent=1) + '\n'
