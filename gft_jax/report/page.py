"""One page of a run: figures, tables, groups and settings in one file.

It opens from disk, prints, and can be sent to somebody.
"""

import base64
import html
import io
import json
import pathlib
from collections.abc import Sequence

import matplotlib

from gft_jax.config import Stage, to_dict
from gft_jax.report import figures, tables
from gft_jax.report import groups as report_groups
from gft_jax.report.run import (
  PHASES,
  USEFUL,
  Evaluations,
  Run,
  goodput,
  read_run,
)
from gft_jax.types import Numbers


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
  """Writes the figures and the page; returns the path of index.html.

  Reads config.json, metrics.jsonl and, where they exist, the arrays `before`
  and `after` of report/coefficients/STAGE.npz, and report/groups/STAGE.json.

  Raises:
    ConfigError: `workdir` holds no run, or one that has measured nothing.
  """
  run = read_run(pathlib.Path(workdir))
  folder = pathlib.Path(workdir) / 'report'
  folder.mkdir(exist_ok=True)
  parts = []
  with matplotlib.rc_context(figures.STYLE):
    for name, (draw, caption) in figures.FIGURES.items():
      figure = draw(run)
      if figure is None:
        continue
      figure.savefig(folder / f'{name}.png')
      figure.set_layout_engine('none')  # found once, it serves both
      vector = io.BytesIO()
      figure.savefig(vector, format='svg', metadata={'Date': None})
      parts.append(picture(name, vector.getvalue(), caption))
  page = folder / 'index.html'
  page.write_text(_page(run, parts), encoding='utf-8')
  return page


def picture(name: str, vector: bytes, caption: str) -> str:
  """A figure of a page, within the page: `vector` is an SVG."""
  data = base64.b64encode(vector).decode()
  return (
    f'<figure id="{name}"><img alt="{html.escape(caption)}"'
    f' src="data:image/svg+xml;base64,{data}">'
    f'<figcaption>{html.escape(caption)}</figcaption></figure>'
  )


def _page(run: Run, figures: Sequence[str]) -> str:
  settings = json.dumps(to_dict(run.config), indent=2)
  return PAGE.format(
    title=html.escape(f'{run.name}: {_objectives(run.config.stages)}'),
    lead=html.escape(_lead(run)),
    tree=_tree(run, ''),
    table=_table(run.evaluations()),
    right=html.escape(tables.what_is_right(run.evaluations().values())),
    goodput=_goodput(run),
    style=CSS + report_groups.CSS,
    groups=_groups(run),
    figures='\n'.join(figures),
    settings=html.escape(settings, quote=False),
  )


def _objectives(stages: Sequence[Stage]) -> str:
  """'SFT → GFT' of a chain; of a tree, its objectives."""
  names = [stage.objective.upper() for stage in stages]
  starts = [stage.start for stage in stages]
  if starts == ['', *(stage.name for stage in stages[:-1])]:
    return ' → '.join(names)
  return ', '.join(dict.fromkeys(names))


def _lead(run: Run) -> str:
  spent = sum(run.total(f'time/{phase}') for phase in figures.PHASE_COLOURS)
  steps = sum(records[-1]['step'] for records in run.records.values())
  reached = f'{len(run.records)} of {len(run.config.stages)} stages'
  minutes, rest = divmod(round(spent), 60)
  return f'{reached}, {steps} steps, {minutes} min {rest} s measured.'


def _tree(run: Run, start: str) -> str:
  items = []
  for stage in run.config.stages:
    if stage.start != start:
      continue
    notes = [stage.objective.upper(), f'{stage.steps} steps', *stage.overrides]
    if stage.name not in run.records:
      notes.append('not reached')
    items.append(
      f'<li><b>{html.escape(stage.name)}</b>'
      f' <small>{html.escape(", ".join(notes))}</small>'
      f'{_tree(run, stage.name)}</li>'
    )
  return f'<ul>{"".join(items)}</ul>' if items else ''


def _table(evaluations: Evaluations) -> str:
  """Stages by splits, with intervals; then drift."""
  if not evaluations:
    return '<p>No evaluation has finished.</p>'
  columns = tables.columns_of(evaluations)
  heads = ''.join(f'<th>{_head(name)}</th>' for name in columns)
  rows = ''.join(
    f'<tr><th scope="row">{html.escape(stage)}</th>'
    + ''.join(f'<td>{_cell(record, name)}</td>' for name in columns)
    + '</tr>'
    for stage, record in evaluations.items()
  )
  return (
    f'<table><thead><tr><th>stage</th>{heads}</tr></thead>'
    f'<tbody>{rows}</tbody></table>'
  )


def _goodput(run: Run) -> str:
  """The phases that took any time, and the share of the useful ones."""
  spent = goodput(run)
  if not spent:
    return ''
  wall = sum(spent.values())
  useful = sum(spent[phase] for phase in USEFUL)
  rows = ''.join(
    f'<tr><th scope="row">{PHASES[phase]}</th>'
    f'<td>{value:.1f}</td><td>{100 * value / wall:.1f} %</td></tr>'
    for phase, value in spent.items()
    if value
  )
  up = f'{100 * useful / (wall - spent["down"]):.1f}'
  return GOODPUT.format(
    share=f'{100 * useful / wall:.1f}',
    up=f' ({up} % while a process was at work)' if spent['down'] else '',
    programs=round(run.total('memory/programs')),
    cached=round(run.total('memory/programs_cached')),
    rows=rows,
  )


def _groups(run: Run) -> str:
  """The groups of each stage, unfolded where GFT was last at work."""
  if not run.groups:
    return ''
  named = [s for s, shown in run.groups.items() if shown.objective == 'gft']
  last = (named or list(run.groups))[-1]
  parts = [
    report_groups.section(shown, stage, opened=stage == last)
    for stage, shown in run.groups.items()
  ]
  return '\n'.join(['<h2>Sample groups</h2>', report_groups.LEGEND, *parts])


def _head(name: str) -> str:
  if name in tables.DRIFT:
    return tables.DRIFT[name]
  _, split, metric = name.split('/')
  return f'{html.escape(split)}<br>{metric.replace("_", " ")}'


def _cell(record: Numbers, name: str) -> str:
  value, interval = tables.number_and_interval(record, name)
  return f'{value}<br><small>{interval}</small>' if interval else value


GOODPUT = """<h2>Where the time went</h2>
<p>Goodput {share} %{up}: the share of rollouts, rewards and updates that count
in the time from the first start to the last record. {programs} programs were
compiled, {cached} of which the cache had.</p>
<table><thead><tr><th>phase</th><th>seconds</th><th>share</th></tr></thead>
<tbody>{rows}</tbody></table>"""

CSS = """
  body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto;
    max-width: 62rem; padding: 0 1rem; background: white }
  h1 { font-size: 1.6rem; margin-bottom: 0 }
  h2 { font-size: 1.2rem; margin-top: 2.2rem }
  small, figcaption, .lead { color: #555 }
  ul { padding-left: 1.4rem; margin: .2rem 0 }
  .wide { overflow-x: auto }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums }
  th, td { padding: .3rem .7rem; text-align: right; vertical-align: top;
    border-bottom: 1px solid #ddd; white-space: nowrap }
  thead th { border-bottom: 2px solid #555; vertical-align: bottom }
  th:first-child { text-align: left }
  td { line-height: 1.25 }
  figure { margin: 1.6rem 0; break-inside: avoid }
  figure img { max-width: 100%; height: auto }
  figcaption { font-size: .9rem; max-width: 44rem }
  pre { font-size: .8rem; overflow-x: auto; background: #f6f6f6; padding: 1rem }
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<h1>{title}</h1>
<p class="lead">{lead}</p>
<h2>Stages</h2>
{tree}
<h2>Final evaluations</h2>
<div class="wide">{table}</div>
<p><small>{right} Under each number its 95 % interval over problems. KL and
entropy in nats, on the policy's own samples at temperature 1.</small></p>
{goodput}
<h2>Figures</h2>
{figures}
{groups}
<h2>Settings</h2>
<details><summary>config.json</summary><pre>{settings}</pre></details>
</html>
"""
