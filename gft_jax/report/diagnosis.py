"""The diagnosis of SFT as a page of text and one figure."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gft_jax.ops.rectification import dynamic_coefficient
from gft_jax.report import figures
from gft_jax.types import Json


def write(
  folder: pathlib.Path, diagnosis: Json, logp: np.ndarray, *, svg: bool = False
) -> str:
  """Writes diagnosis.json, diagnosis.md and diagnosis.png; returns the text.

  Args:
    folder: to write.
    diagnosis: of gft_jax.diagnosis.
    logp: [n] of the demonstrated tokens, under the policy.
    svg: write diagnosis.svg too.
  """
  (folder / 'diagnosis.json').write_text(json.dumps(diagnosis, indent=1))
  page = markdown(diagnosis)
  (folder / 'diagnosis.md').write_text(page)
  kinds = ('png', 'svg') if svg else ('png',)
  draw(diagnosis, logp, [folder / f'diagnosis.{kind}' for kind in kinds])
  return page


def markdown(diagnosis: Json) -> str:
  """The diagnosis as text, with a table of the largest weights."""
  lines = [
    f'# Diagnosis of SFT: {diagnosis["demonstrations"]} demonstrations,'
    f' {diagnosis["tokens"]:,} tokens'
  ]
  for title, values in diagnosis.items():
    if isinstance(values, dict):
      lines += ['', f'## {title}', '']
      lines += [f'* {line}' for line in _flat(values)]
  lines += [
    '',
    '## largest weights',
    '',
    '| 1/p | token | the policy would have written | after |',
    '|---|---|---|---|',
  ]
  for row in diagnosis['largest weights']:
    cells = [_cell(row[k]) for k in ('token', 'likeliest', 'before')]
    lines.append(f'| {row["1/p"]:,.0f} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def _flat(values: Mapping[str, object], path: str = '') -> list[str]:
  lines = []
  for name, value in values.items():
    where = f'{path}, {name}' if path else name
    if isinstance(value, dict):
      lines += _flat(value, where)
    else:
      lines.append(f'{where}: {value:,.4g}')
  return lines


def _cell(text: str) -> str:
  """Text that a cell of a table can hold."""
  text = text.replace('\n', '⏎').replace('|', '¦').replace('`', "'")
  return f'`{text}`' if text.strip() else f'`{text!r}`'


def draw(
  diagnosis: Json, logp: np.ndarray, paths: Sequence[pathlib.Path]
) -> None:
  """Weights, rectified fraction, entropy and the end, in one row."""
  with matplotlib.rc_context(figures.STYLE):
    drawing = Figure(figsize=(11, 2.7))
    weight, fraction, entropy, end = drawing.subplots(1, 4)
    inverse = np.sort(np.exp(np.minimum(-logp, 80)))
    share = 1 - np.arange(inverse.size) / inverse.size
    c = np.asarray(dynamic_coefficient(logp, tau=diagnosis['tau']))
    weight.loglog(inverse, share, color=figures.VERMILLION, label='SFT: 1/p')
    weight.loglog(
      np.sort(c * np.exp(np.minimum(-logp, 80))),
      share,
      color=figures.BLUE,
      ls='--',
      label='GFT: C/p',
    )
    weight.set_xlabel('weight on the gradient of p')
    weight.set_ylabel('share of tokens above')
    weight.legend()

    curve = diagnosis['rectified fraction']
    fraction.plot([float(t) for t in curve], curve.values(), color=figures.BLUE)
    fraction.axvline(diagnosis['tau'], color=figures.GREY, ls=':')
    fraction.set_xlabel('τ')
    fraction.set_ylabel('rectified fraction')
    fraction.set_ylim(0, 1)

    _bars(entropy, diagnosis['entropy per token'], 'entropy per token (nats)')
    ends = diagnosis['probability of the end']
    means = {name: values['mean'] for name, values in ends.items()}
    _bars(end, means, 'mean probability of the end')
    end.set_xlim(0, 1)
    for path in paths:
      drawing.savefig(path)


def _bars(ax: Axes, values: Mapping[str, float], label: str) -> None:
  names = list(values)
  ax.barh(range(len(names)), [*values.values()], height=0.6, color=figures.BLUE)
  ax.set_yticks(range(len(names)), names)
  ax.invert_yaxis()
  ax.set_xlabel(label)
