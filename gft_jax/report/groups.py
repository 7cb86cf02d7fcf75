"""Whole groups of a stage: kept as JSON, shown as coloured text.

This is Figure 2 of the paper word by word. A token with probability p in an
answer with advantage A has the weight A/p on the gradient of p, and with the
dynamic coefficient A C/p. What is kept is p, A and τ; the weights are computed
where they are shown. Texts are those of a model, so all are escaped.
"""

import html
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gft_jax.batch import ORIGINS, GroupBatch
from gft_jax.ops.rectification import dynamic_coefficient

# What is kept of a stage: prompts, answers to each, tokens of each. A page with
# all of them has 1.5 MB a stage.
PROMPTS, MEMBERS, TOKENS = 3, 8, 256
# Less than this cannot be told from 0 in float32.
LEAST = 1e-37

UP, DOWN = '#0072B2', '#D55E00'  # Okabe and Ito (2008)
LEVELS = 8
# The weights of the legend; two levels of colour are a factor of ten.
SCALE = (0.1, 1, 10, 100, 1000)


class Member(NamedTuple):
  """One answer.

  Attributes:
    origin: expert, teacher or self.
    reward: None where the objective asks for no reward.
    advantage: None likewise; each token then counts with A = 1.
    length: tokens of the whole answer.
    tokens: their texts, which together are the answer; the first TOKENS.
    p: probability of each under the policy; None where the token trains nobody.
    kept: positions whose coefficient is 1 whatever their p.
  """

  origin: str
  reward: float | None
  advantage: float | None
  length: int
  tokens: list[str]
  p: list[float | None]
  kept: list[int]


class Group(NamedTuple):
  """A prompt and its answers.

  Attributes:
    prompt: its text.
    answer: the reference answer.
    size: of the group, of which the first MEMBERS are kept.
    members: the answers.
  """

  prompt: str
  answer: str
  size: int
  members: list[Member]


class GroupSamples(NamedTuple):
  """Groups of one stage.

  Attributes:
    objective: its name.
    step: steps of the stage after which the policy was asked.
    tau: threshold of the dynamic coefficient.
    groups: the groups.
  """

  objective: str
  step: int
  tau: float
  groups: list[Group]


class Weights(NamedTuple):
  """Of the n tokens of one answer; NaN where a token trains nobody.

  Attributes:
    p: [n] probability.
    coefficient: [n] C.
    before: [n] A/p.
    after: [n] A C/p.
  """

  p: np.ndarray
  coefficient: np.ndarray
  before: np.ndarray
  after: np.ndarray


def groups_of(
  batch: GroupBatch,
  prompts: Sequence[str],
  answers: Sequence[str],
  logp: np.ndarray,
  advantages: np.ndarray | None,
  kept: np.ndarray | None,
  pieces: Callable[[list[int]], list[str]],
) -> list[Group]:
  """What is kept of B groups.

  Args:
    batch: the groups, on the host; empty slots are left out.
    prompts: B texts.
    answers: B reference answers.
    logp: [B, G, T] under the untempered policy.
    advantages: [B, G], or None for an objective without rewards.
    kept: [B, G, T] bool, tokens that are not rectified, or None.
    pieces: token ids -> the text of each; see texts.token_pieces.
  """
  origins = {number: name for name, number in ORIGINS.items()}
  trained = batch.responses.trained
  if trained is None:
    trained = np.ones(batch.responses.tokens.shape, bool)

  def member(b: int, g: int, trained: np.ndarray) -> Member:
    length = int(batch.responses.length[b, g])
    shown = slice(min(length, TOKENS))
    return Member(
      origin=origins[int(batch.origin[b, g])],
      reward=None if advantages is None else float(batch.rewards[b, g]),
      advantage=None if advantages is None else float(advantages[b, g]),
      length=length,
      tokens=pieces(batch.responses.tokens[b, g, shown].tolist()),
      p=[
        float(f'{p:.6g}') if trains else None
        for p, trains in zip(
          np.exp(logp[b, g, shown].astype(float)), trained[b, g, shown]
        )
      ],
      kept=[] if kept is None else np.flatnonzero(kept[b, g, shown]).tolist(),
    )

  found = []
  for b in range(len(prompts)):
    real = np.flatnonzero(batch.member_mask[b])
    members = [member(b, g, np.asarray(trained)) for g in real[:MEMBERS]]
    found.append(Group(prompts[b], answers[b], len(real), members))
  return found


def text_of(shown: GroupSamples) -> str:
  """The file that `read` reads."""
  groups = [
    group._asdict() | {'members': [m._asdict() for m in group.members]}
    for group in shown.groups
  ]
  return json.dumps(shown._asdict() | {'groups': groups}, indent=1)


def read(path: pathlib.Path) -> GroupSamples | None:
  """What `text_of` wrote; None, and a warning, where the file is damaged."""
  try:
    kept = json.loads(path.read_text())
    groups = [
      Group(**group | {'members': [Member(**m) for m in group['members']]})
      for group in kept['groups']
    ]
    return GroupSamples(**kept | {'groups': groups})
  except (ValueError, KeyError, TypeError):
    logging.warning('%s holds no groups; it is left out', path)
    return None


def weights_of(member: Member, tau: float) -> Weights:
  """The weights on the gradient of p of each token."""
  p = np.array([np.nan if p is None else p for p in member.p])
  p = np.maximum(p, LEAST)
  # One shape for all answers: another would compile another program.
  padded = np.full(TOKENS, np.nan)
  padded[: len(p)] = p
  coefficient = np.asarray(dynamic_coefficient(np.log(padded), tau=tau))
  coefficient = coefficient[: len(p)].astype(float)
  coefficient[member.kept] = 1
  advantage = 1 if member.advantage is None else member.advantage
  return Weights(p, coefficient, advantage / p, advantage * coefficient / p)


def section(shown: GroupSamples, title: str, *, opened: bool = False) -> str:
  """The groups of a stage as HTML that can be folded; it needs CSS.

  Args:
    shown: the groups.
    title: plain text, for instance the name of the stage.
    opened: not folded at first.
  """
  notes = f'{shown.objective.upper()}, step {shown.step}, τ = {shown.tau:g}'
  groups = ''.join(_group(group, shown.tau) for group in shown.groups)
  return (
    f'<details class="groups"{" open" if opened else ""}>'
    f'<summary><b>{html.escape(title)}</b>'
    f' <small>{html.escape(notes)}</small></summary>{groups}</details>'
  )


def _group(group: Group, tau: float) -> str:
  more = group.size - len(group.members)
  note = f'<p><small>and {more} more answers</small></p>' if more else ''
  cards = ''.join(_card(member, tau) for member in group.members)
  answer = f'reference answer {group.answer}' if group.answer else ''
  return (
    f'<div class="group"><p class="prompt">{html.escape(group.prompt)}'
    f' <small>{html.escape(answer)}</small></p>'
    f'<div class="members">{cards}</div>{note}</div>'
  )


def _card(member: Member, tau: float) -> str:
  """An answer with its reward and its advantage, twice."""
  weights = weights_of(member, tau)
  if member.advantage is None:
    scored = 'no reward, A&nbsp;=&nbsp;1'
  else:
    scored = (
      f'reward {member.reward:.2f}, A&nbsp;=&nbsp;{_signed(member.advantage)}'
    )
  trained = ~np.isnan(weights.p)
  notes = f'{np.sum(weights.coefficient < 1)} of {trained.sum()} rectified'
  if trained.any():
    before, after = (
      _number(np.nanmax(np.abs(w))) for w in (weights.before, weights.after)
    )
    notes += f'; largest weight {before}&nbsp;→&nbsp;{after}'
  if member.length > len(member.tokens):
    notes += f'; {len(member.tokens)} of {member.length} tokens shown'
  titles = [_title(member, weights, i) for i in range(len(member.tokens))]
  plain = np.ones_like(weights.coefficient)
  return (
    f'<div class="member"><p><b>{html.escape(member.origin)}</b>'
    f' <small>{scored}</small></p>'
    f'<p class="tokens"><small>A/p</small> '
    f'{_tokens(member.tokens, weights.before, plain, titles)}</p>'
    f'<p class="tokens"><small>A·C/p</small> '
    f'{_tokens(member.tokens, weights.after, weights.coefficient, titles)}</p>'
    f'<p><small>{notes}</small></p></div>'
  )


def _tokens(
  tokens: Sequence[str],
  weights: np.ndarray,
  coefficient: np.ndarray,
  titles: Sequence[str],
) -> str:
  return ''.join(
    f'<span class="{_class(w, c)}" title="{title}">{_visible(token)}</span>'
    for token, w, c, title in zip(tokens, weights, coefficient, titles)
  )


def _class(weight: float, coefficient: float) -> str:
  """Its colour, of which there are LEVELS for each sign, and its line."""
  if np.isnan(weight):
    return 'untrained'
  level = 0
  if weight:
    level = np.clip(np.ceil(2 * np.log10(abs(weight) / SCALE[0])), 1, LEVELS)
  sign = 'up' if weight > 0 else 'down'
  return f'{sign}{level:.0f}' + (' rectified' if coefficient < 1 else '')


def _visible(token: str) -> str:
  """Escaped, with a sign for the ends of lines."""
  return html.escape(token).replace('\n', '↵\n')


def _title(member: Member, weights: Weights, i: int) -> str:
  p, c = weights.p[i], weights.coefficient[i]
  if np.isnan(p):
    return 'not trained'
  advantage = 1 if member.advantage is None else member.advantage
  return (
    f'p = {p:.3g}, C = {c:.3g}, A = {_signed(advantage)}:'
    f' 1/p = {_number(1 / p)}, C/p = {_number(c / p)},'
    f' A/p = {_number(weights.before[i])},'
    f' A·C/p = {_number(weights.after[i])}'
  )


def _number(value: float) -> str:
  text = f'{value:,.0f}' if 1e3 <= abs(value) < 1e6 else f'{value:.3g}'
  return text.replace('-', '−')


def _signed(value: float) -> str:
  return f'{value:+.2f}'.replace('-', '−')


def _shade(colour: str, share: float) -> str:
  """A colour on white paper, opaque."""
  parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
  return '#' + ''.join(f'{round(255 + share * (x - 255)):02x}' for x in parts)


def _swatches(sign: int) -> str:
  return ''.join(
    f'<span class="{_class(sign * weight, 1)}"> {text} </span>'
    for weight, text in zip(SCALE, ('≤0.1', '1', '10', '100', '≥1000'))
  )


LEGEND = f"""<p>Each answer stands twice, coloured by the weight of each token
on the gradient of its probability p: above without rectification (A/p, as of
GRPO and, with A = 1, of SFT), below with it (A·C/p, as of GFT), whatever the
stage itself trains with.
Blue <span class="tokens">{_swatches(1)}</span> makes a token likelier,
vermillion <span class="tokens">{_swatches(-1)}</span> less likely; a token that
is <span class="rectified">underlined</span> has p ≤ τ, so that C = p, and the
pointer on a token shows its numbers.</p>"""

CSS = """
  .groups { margin: .8rem 0 } .groups summary { cursor: pointer }
  .group { margin: .8rem 0 1.4rem } .group p { margin: .2rem 0 }
  .prompt { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere }
  .prompt small { font-weight: 400 }
  .members { display: flex; flex-wrap: wrap; gap: .6rem }
  .member { border: 1px solid #ccc; border-radius: 4px; padding: .3rem .6rem;
    break-inside: avoid; font-size: .85rem; flex: 1 1 11.5rem; min-width: 0;
    max-width: 30rem }
  .member small { font-size: .75rem }
  .member .tokens small { display: inline-block; width: 3.6em }
  .tokens { font-family: ui-monospace, monospace; line-height: 1.6;
    print-color-adjust: exact; -webkit-print-color-adjust: exact }
  .member .tokens { white-space: pre-wrap; overflow-wrap: anywhere }
  .tokens span:empty::before { content: "·" }
  .rectified { text-decoration: underline; text-underline-offset: 3px }
  .untrained { color: #777 }
""" + ''.join(
  f'  .{sign}{n} {{ background: {_shade(colour, 0.8 * n / LEVELS)} }}\n'
  for sign, colour in (('up', UP), ('down', DOWN))
  for n in range(1, LEVELS + 1)
)
