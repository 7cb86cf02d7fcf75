"""The summary as one page that opens from disk and can be sent to somebody."""

import html
import re

from figures.prose import READING, TASK
from figures.verdicts import Item
from gft_jax.report import figures
from gft_jax.report import groups as report_groups
from gft_jax.report import page as report_page
from gft_jax.report.page import picture

COLOURS = {
  'reproduces': figures.BLUE,
  'holds': figures.BLUE,
  'does not reproduce': figures.VERMILLION,
  'does not hold': figures.VERMILLION,
}


def page(
  vectors: dict[str, bytes],
  items: dict[str, Item],
  about: dict[str, str],
  groups: dict[str, report_groups.GroupSamples],
) -> str:
  """The page, with every figure in it.

  Args:
    vectors: item -> the SVG of its figure.
    items: what the page shows, by name.
    about: the lines of its head.
    groups: what stands above them -> groups of a stage.
  """
  parts = [_section(vectors, name, item) for name, item in items.items()]
  shown = [
    report_groups.section(groups[title], title, opened=i == 0)
    for i, title in enumerate(groups)
  ]
  if shown:
    head = '<h2>What each method does to an answer</h2>'
    parts += [head, report_groups.LEGEND, *shown]
  rows = ''.join(
    f'<tr><th scope="row">{html.escape(key)}</th>'
    f'<td>{html.escape(value)}</td></tr>'
    for key, value in about.items()
  )
  style = report_page.CSS + report_groups.CSS + CSS
  return PAGE.format(
    style=style,
    about=rows,
    task=_prose(TASK),
    reading=html.escape(READING),
    items='\n'.join(parts),
  )


def _section(vectors: dict[str, bytes], name: str, item: Item) -> str:
  heads = ''.join(f'<th>{html.escape(cell)}</th>' for cell in item.table.head)
  rows = ''.join(
    f'<tr><th scope="row">{html.escape(first)}</th>'
    + ''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)
    + '</tr>'
    for first, *cells in item.table.body
  )
  verdicts = ''.join(
    f'<li style="color: {COLOURS.get(claim.verdict(), "inherit")}">'
    f'{html.escape(claim.sentence().replace("**", ""))}</li>'
    for claim in item.claims
  )
  drawing = ''
  if name in vectors:
    drawing = picture(name, vectors[name], item.title)
  return (
    f'<h2>{html.escape(item.title)}</h2>{drawing}'
    f'<div class="wide"><table><thead><tr>{heads}</tr></thead>'
    f'<tbody>{rows}</tbody></table></div><ul>{verdicts}</ul>'
    f'<p>Paper: {_prose(item.paper)}</p><p>{_prose(item.note)}</p>'
  )


def _prose(text: str) -> str:
  """Escaped, with `code`."""
  return re.sub('`(.+?)`', r'<code>\1</code>', html.escape(text))


CSS = '  .about td { text-align: left; white-space: normal }\n'

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The paper on the embedded task</title>
<style>{style}</style>
<h1>The paper on the embedded task</h1>
<table class="about">{about}</table>
<p>{task}</p>
<p>{reading}</p>
{items}
</html>
"""
