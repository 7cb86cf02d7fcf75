"""Run directories in, the paper's figures and tables out: one file an item."""

import collections
import importlib
import io
import json
import pathlib
from collections.abc import Sequence

import matplotlib

from figures import page
from figures.results import Item, Results
from gft_jax import report

# In the paper's order; each module has item(results) -> Item.
ITEMS = (
  *(f'figure_{n}' for n in (1, 2, 3, 4, 5, 6)),
  *(f'table_{n}' for n in (1, 2, 3, 4, 5)),
  'regimes',
  'experts',
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
  out: pathlib.Path, results: Results, about: dict[str, str]
) -> dict[str, Item]:
  """Writes the summary; returns its items."""
  out.mkdir(parents=True, exist_ok=True)
  items = {}
  with matplotlib.rc_context(report.STYLE | {'font.size': 8}):
    for name in ITEMS:
      items[name] = importlib.import_module(f'figures.{name}').item(results)
      if items[name].figure:
        save(items[name].figure, out / name)
  shown = results.groups({'gft': 'GFT', 'sft': 'SFT', 'grpo': 'GRPO'})
  (out / 'index.html').write_text(
    page.page(out, items, about, shown), encoding='utf-8'
  )
  (out / 'README.md').write_text(markdown(items, about), encoding='utf-8')
  (out / 'results.json').write_text(numbers(items, about), encoding='utf-8')
  return items


def save(figure, path: pathlib.Path) -> None:
  """PNG and SVG; the same numbers give the same bytes."""
  figure.savefig(path.with_suffix('.png'))
  figure.set_layout_engine('none')  # found once, it serves both files
  vector = io.BytesIO()
  figure.savefig(vector, format='svg', metadata={'Date': None})
  path.with_suffix('.svg').write_bytes(vector.getvalue())


def markdown(items: dict[str, Item], about: dict[str, str]) -> str:
  lines = ['# The paper on the embedded task', '', '| | |', '|---|---|']
  lines += [f'| {key} | {value} |' for key, value in about.items()]
  lines += [
    '',
    'Written by the command. ± is a 95 % interval over seeds (Student’s t). A'
    ' verdict stands on the paired difference over seeds: the claim reproduces,'
    ' or does not, where that interval leaves out 0.',
    '',
    '| | reproduces | does not reproduce | cannot be seen |',
    '|---|---|---|---|',
  ]
  for item in items.values():
    counts = collections.Counter(claim.verdict() for claim in item.claims)
    seen = [counts['reproduces'], counts['does not reproduce']]
    cells = [item.title, *seen, counts.total() - sum(seen)]
    lines += [f'| {" | ".join(map(str, cells))} |']
  for name, item in items.items():
    lines += ['', f'## {item.title}', '']
    if item.figure:
      lines += [f'![{item.title}]({name}.png)', '']
    lines += [report.markdown(item.table)]
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
          'verdict': claim.verdict(),
          'margins by seed': [float(margin) for margin in claim.margins],
        }
        for claim in item.claims
      ],
    }
    for name, item in items.items()
  }
  return json.dumps({'about': about, 'items': values}, indent=1) + '\n'
