"""The paper's diagnosis of SFT (section 2) on any model and any SFT dataset.

  python experiments/diagnose.py --model FOLDER --data FILE --workdir DIR

Without --data the embedded task, without --model a policy that knows nothing
(and whose entropy before training is not measured).
On demonstrations it measures SFT's importance weight 1/p and the tokens behind
its largest values, who carries the gradient, how sparse SFT's implicit reward
1[y = y*] is, what a threshold τ would rectify, and how likely the policy finds
the end of an answer. Then it takes --steps steps of SFT, DFT and GFT from the
model (WORKDIR/run, resumable) and measures entropy and the end again; DFT and
GFT also with loss.rectify_end=false, the remedy for an end that rectification
keeps unlikely. Writes diagnosis.json, .md, .png and .svg.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any, NamedTuple

import command

from gft_jax.config import (
  Config,
  DataConfig,
  EvalConfig,
  GroupConfig,
  ModelConfig,
  RewardConfig,
  Stage,
)

QUANTILES = (0.5, 0.9, 0.99, 0.999)
# Of the tokens, in the shares of a gradient.
TOP = 0.01
TAUS = tuple(i / 20 for i in range(21))
# Characters of context that the table of tokens shows.
CONTEXT = 48

DEMONSTRATIONS = ('group.teachers=0', 'group.samples=0')
GROUPS = ('group.teachers=0', 'group.samples=3')
KEEP_END = ('loss.rectify_end=false',)


class Tokens(NamedTuple):
  """Tokens of demonstrations, flat; n of them.

  Attributes:
    logp: [n] under the policy.
    gradient: [n] norm of SFT's gradient by the last hidden state.
    likeliest: [n] what the policy would have written.
    token: [n] what stands there.
    end: [n] bool, the last token of its answer.
    row: [n] which demonstration.
    position: [n] in its answer.
  """

  logp: Any
  gradient: Any
  likeliest: Any
  token: Any
  end: Any
  row: Any
  position: Any


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  parser.add_argument('--model', default='', help='folder or hub id')
  parser.add_argument('--data', default='', help='JSONL or parquet file')
  parser.add_argument('--workdir', required=True, help='folder to write')
  parser.add_argument(
    '--steps', type=int, default=20, help='k of SFT, DFT and GFT'
  )
  command.add_set(
    parser,
    'settings, as of train.py; eval.prompts demonstrations are looked at'
    ' and eval.samples answers a prompt sampled',
  )
  options = parser.parse_args(arguments)

  def work():
    config = config_of(options.model, options.data, options.steps)
    config = command.overridden(config, options.set)
    workdir = pathlib.Path(options.workdir)
    diagnosis, tokens, texts = diagnose(config, workdir)
    diagnosis['largest weights'] = texts
    (workdir / 'diagnosis.json').write_text(json.dumps(diagnosis, indent=1))
    page = markdown(diagnosis)
    (workdir / 'diagnosis.md').write_text(page)
    figure(workdir, diagnosis, tokens)
    print(page)
    print(f'{workdir}/diagnosis.png')

  return command.run(work)


def config_of(model: str, data: str, steps: int) -> Config:
  """From the model: SFT, DFT and GFT, the last two also with the remedy."""

  def stage(name, objective, *overrides):
    # The model is evaluated once, before the first of them.
    before = () if name == 'sft' else ('eval.before=false',)
    return Stage(name, '', objective, steps, (*overrides, *before))

  return Config(
    model=ModelConfig(path=model),
    data=DataConfig(
      path=data,
      batch_size=4 if model else 16,
      max_prompt=128 if data else 16,
      max_response=96 if data else 40,
      max_dropped=0.8,
    ),
    group=GroupConfig(experts=1, teachers=0, samples=3),
    reward=RewardConfig(
      function='math' if data else 'arithmetic', workers=2 if data else 0
    ),
    eval=EvalConfig(
      splits=('test',),
      prompts=32,
      samples=4,
      ks=(1, 4),
      temperature=1.0,
      max_response=96 if data else 40,
      kl_prompts=32,
      batch_size=8 if model else 32,
    ),
    stages=(
      stage('sft', 'sft', *DEMONSTRATIONS),
      stage('dft', 'dft', *DEMONSTRATIONS),
      stage('dft_keep_end', 'dft', *DEMONSTRATIONS, *KEEP_END),
      stage('gft', 'gft', *GROUPS),
      stage('gft_keep_end', 'gft', *GROUPS, *KEEP_END),
    ),
  )


def diagnose(
  config: Config, workdir: pathlib.Path
) -> tuple[dict[str, Any], Tokens, list[dict[str, Any]]]:
  """Everything that is measured; the tokens; the largest weights in context."""
  from gft_jax import data, evaluate
  from gft_jax.evaluation.held_out import EXPERT_ONLY
  from gft_jax.loop import train
  from gft_jax.policy import load_policy, restore_stage
  from gft_jax.run import writers

  train(config, workdir / 'run')
  entropy = {}
  for record in writers.read_metrics(workdir / 'run'):
    if 'eval/entropy' in record:
      name = record['stage'] if record['step'] else 'model'
      entropy[name] = record['eval/entropy']

  policy = load_policy(config)
  dataset = data.load(
    config.data, EXPERT_ONLY, policy.tokenizer, 'test', config.seed
  )
  rows = min(config.eval.prompts, len(dataset))
  with evaluate.engine_of(config, policy, workdir) as engine:
    tokens = tokens_of(engine, policy.params, dataset, config)
    ends = {'model': tokens.logp[tokens.end]}
    for stage in config.stages:
      params, _ = restore_stage(policy, workdir / 'run', stage.name)
      after = tokens_of(engine, params, dataset, config)
      ends[stage.name] = after.logp[after.end]
    own = own_answers(engine, policy.params, dataset, config)
  diagnosis = {
    'demonstrations': rows,
    'tokens': len(tokens.logp),
    'tau': config.loss.tau,
    'steps': config.stages[0].steps,
    **weights(tokens, config.loss.tau),
    'implicit reward': own | likelihood(tokens),
    'entropy per token': entropy,
    'probability of the end': {k: spread(v) for k, v in ends.items()},
  }
  return diagnosis, tokens, largest(tokens, dataset, policy.tokenizer)


def tokens_of(engine: Any, params: Any, dataset: Any, config: Config) -> Tokens:
  """The tokens of the first `eval.prompts` demonstrations."""
  import numpy as np

  from gft_jax.data import pipeline
  from gft_jax.rollout import groups

  parts, first = [], 0
  size = config.eval.batch_size
  for examples in pipeline.in_order(dataset, config.eval.prompts, size):
    batch = groups.unscored(
      pipeline.prompts_of(examples), pipeline.given_of(examples), size
    )
    found = engine.demonstration_tokens(params, batch, chunk=config.loss.chunk)
    mask = np.asarray(batch.token_mask)
    row, _, position = np.nonzero(mask)
    parts.append(
      Tokens(
        logp=found['logp'][mask],
        gradient=found['gradient'][mask],
        likeliest=found['likeliest'][mask],
        token=np.asarray(batch.responses.tokens)[mask],
        end=np.asarray(batch.end_mask)[mask],
        row=first + row,
        position=position,
      )
    )
    first += len(examples.index)
  return Tokens(*(np.concatenate(column) for column in zip(*parts)))


def weights(tokens: Tokens, tau: float) -> dict[str, Any]:
  """SFT's weight 1/p, who carries it and the gradient, and what τ rectifies."""
  import numpy as np

  from gft_jax.ops import diagnostics
  from gft_jax.ops.rectification import dynamic_coefficient

  everything = np.ones(tokens.logp.shape, bool)
  inverse = np.asarray(diagnostics.inverse_probability(tokens.logp))
  coefficient = {
    'sft': np.ones_like(inverse),
    'dft': np.asarray(dynamic_coefficient(tokens.logp, tau=1.0)),
    'gft': np.asarray(dynamic_coefficient(tokens.logp, tau=tau)),
  }

  def share(values):
    return float(diagnostics.top_share(values, share=TOP))

  return {
    '1/p': {f'{q:.1%}': float(np.quantile(inverse, q)) for q in QUANTILES}
    | {'largest': float(inverse.max())},
    'share of the top 1 % of tokens': {
      'in the weight on grad p': {
        name: share(c * inverse) for name, c in coefficient.items()
      },
      'in the norm of the gradient': {
        name: share(c * tokens.gradient) for name, c in coefficient.items()
      },
    },
    'rectified fraction': {
      str(t): float(
        diagnostics.rectified_fraction(tokens.logp, everything, tau=t).value
      )
      for t in TAUS
    },
  }


def own_answers(
  engine: Any, params: Any, dataset: Any, config: Config
) -> dict[str, float]:
  """How often the policy writes y*, or a right answer, by itself."""
  import numpy as np

  from gft_jax.data import pipeline
  from gft_jax.ops import diagnostics
  from gft_jax.rollout import groups

  settings, same, right = config.eval, [], []
  asked = pipeline.in_order(dataset, settings.prompts, settings.batch_size)
  for number, examples in enumerate(asked):
    count = len(examples.index)
    prompts = groups.pad_rows(
      pipeline.prompts_of(examples), settings.batch_size
    )
    sampled = engine.sample(
      params,
      prompts,
      engine.key('evaluate', 0),
      dataclasses.replace(config.sampler, temperature=1.0),
      settings.samples,
      config.data.max_response,
    )
    tokens, length = sampled.tokens[:count], sampled.length[:count]
    given = examples.given_tokens, examples.given_length
    star, star_length = (
      np.broadcast_to(x[:, :1], (*length.shape, *x.shape[2:])) for x in given
    )
    same.append(diagnostics.implicit_reward(tokens, length, star, star_length))
    texts, finished = engine.decode(
      sampled.replace(tokens=tokens, length=length), config.sampler
    )
    scored = engine.score(
      config.reward,
      f'diagnosis/{number}',
      examples.prompts,
      examples.answers,
      texts,
      length > 0,
      finished,
    )
    right.append(scored.values >= 1)
  return {
    'answers sampled': int(np.concatenate(same).size),
    'share that is the demonstration': float(np.concatenate(same).mean()),
    'share that is right': float(np.concatenate(right).mean()),
  }


def likelihood(tokens: Tokens) -> dict[str, float]:
  """Probability that one answer of the policy is the demonstration."""
  import numpy as np

  total = np.bincount(tokens.row, tokens.logp.astype(np.float64))
  return {
    'log10 of its probability, median': float(np.median(total) / np.log(10)),
    'log10 of its probability, largest': float(total.max() / np.log(10)),
  }


def spread(logp: Any) -> dict[str, float]:
  import numpy as np

  p = np.exp(logp)
  return {
    'mean': float(p.mean()),
    'median': float(np.median(p)),
    'share below 0.1': float((p < 0.1).mean()),
  }


def largest(
  tokens: Tokens, dataset: Any, tokenizer: Any, count: int = 12
) -> list[dict[str, Any]]:
  """The least likely tokens with what stands before them."""
  import numpy as np

  found = []
  for i in np.argsort(tokens.logp)[:count]:
    examples = dataset.examples(tokens.row[i : i + 1])
    prompt = examples.tokens[0, : examples.length[0]]
    answer = examples.given_tokens[0, 0, : tokens.position[i]]
    before = tokenizer.decode([*prompt, *answer])
    found.append(
      {
        '1/p': float(np.exp(-tokens.logp[i])),
        'token': tokenizer.decode([tokens.token[i]]),
        'likeliest': tokenizer.decode([tokens.likeliest[i]]),
        'before': before[-CONTEXT:],
        'position': int(tokens.position[i]),
        'row': int(tokens.row[i]),
      }
    )
  return found


def markdown(diagnosis: dict[str, Any]) -> str:
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


def _flat(values: dict[str, Any], path: str = '') -> list[str]:
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


def figure(
  workdir: pathlib.Path, diagnosis: dict[str, Any], tokens: Tokens
) -> None:
  """Weights, rectified fraction, entropy and the end, in one row."""
  import matplotlib
  import numpy as np
  from matplotlib.figure import Figure

  from gft_jax.ops.rectification import dynamic_coefficient
  from gft_jax.report import figures

  with matplotlib.rc_context(figures.STYLE):
    drawing = Figure(figsize=(11, 2.7))
    weight, fraction, entropy, end = drawing.subplots(1, 4)
    inverse = np.sort(np.exp(np.minimum(-tokens.logp, 80)))
    share = 1 - np.arange(inverse.size) / inverse.size
    c = np.asarray(dynamic_coefficient(tokens.logp, tau=diagnosis['tau']))
    weight.loglog(inverse, share, color=figures.VERMILLION, label='SFT: 1/p')
    weight.loglog(
      np.sort(c * np.exp(np.minimum(-tokens.logp, 80))),
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
    for kind in ('png', 'svg'):
      drawing.savefig(workdir / f'diagnosis.{kind}')


def _bars(ax: Any, values: dict[str, float], label: str) -> None:
  from gft_jax.report import figures

  names = list(values)
  ax.barh(range(len(names)), values.values(), height=0.6, color=figures.BLUE)
  ax.set_yticks(range(len(names)), names)
  ax.invert_yaxis()
  ax.set_xlabel(label)


if __name__ == '__main__':
  sys.exit(main())
