"""The paper's diagnosis of SFT (section 2) on any model and any SFT dataset.

On demonstrations: SFT's importance weight 1/p and the tokens behind its largest
values, who carries the gradient, how sparse SFT's implicit reward 1[y = y*] is,
what a threshold τ would rectify, and how likely the policy finds the end of an
answer. Then some steps of SFT, DFT and GFT, and entropy and the end again.
"""

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from gft_jax import data
from gft_jax.config import (
  Config,
  DataConfig,
  EvalConfig,
  GroupConfig,
  ModelConfig,
  RewardConfig,
  Stage,
)
from gft_jax.data import pipeline
from gft_jax.engine import Engine
from gft_jax.evaluate import engine_of
from gft_jax.evaluation import generations
from gft_jax.evaluation.held_out import EXPERT_ONLY
from gft_jax.loop import train
from gft_jax.ops import diagnostics
from gft_jax.ops.rectification import dynamic_coefficient
from gft_jax.parallel.mesh import even_rows
from gft_jax.policy import load_policy, restore_stage
from gft_jax.rewards.grader import evaluation_reward, wanted_by
from gft_jax.rollout import groups
from gft_jax.run import writers
from gft_jax.types import Json, Numbers, Params

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

  logp: np.ndarray
  gradient: np.ndarray
  likeliest: np.ndarray
  token: np.ndarray
  end: np.ndarray
  row: np.ndarray
  position: np.ndarray


def config_of(model: str, path: str, steps: int) -> Config:
  """From the model: SFT, DFT and GFT, the last two also with the remedy.

  Args:
    model: folder or hub id; '': the embedded decoder, untrained.
    path: of the demonstrations; '': the embedded task.
    steps: of each stage.
  """

  def stage(name: str, objective: str, *overrides: str) -> Stage:
    # The model is evaluated once, before the first of them.
    before = () if name == 'sft' else ('eval.before=false',)
    return Stage(name, '', objective, steps, (*overrides, *before))

  return Config(
    model=ModelConfig(path=model),
    data=DataConfig(
      path=path,
      batch_size=4 if model else 16,
      max_prompt=128 if path else 16,
      max_response=96 if path else 40,
      max_dropped=0.8,
    ),
    group=GroupConfig(experts=1, teachers=0, samples=3),
    reward=RewardConfig(
      function='math' if path else 'arithmetic', workers=2 if path else 0
    ),
    eval=EvalConfig(
      splits=('test',),
      prompts=32,
      samples=4,
      ks=(1, 4),
      temperature=1.0,
      max_response=96 if path else 40,
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


def diagnose(config: Config, workdir: pathlib.Path) -> tuple[Json, Tokens]:
  """Everything that is measured, by name; and the tokens.

  The steps of the stages are taken in WORKDIR/run, and resumed there.
  """
  train(config, workdir / 'run')
  entropy = {}
  for record in writers.read_metrics(workdir / 'run'):
    if 'eval/entropy' in record:
      name = record['stage'] if record['step'] else 'model'
      entropy[name] = record['eval/entropy']

  policy = load_policy(config)
  dataset = data.load(
    config.data,
    EXPERT_ONLY,
    policy.tokenizer,
    'test',
    config.seed,
    wanted_by(evaluation_reward(config)),
  )
  reward = evaluation_reward(config)
  with engine_of(config, policy, workdir, [reward]) as engine:
    tokens = tokens_of(engine, policy.params, dataset, config)
    ends = {'model': tokens.logp[tokens.end]}
    for stage in config.stages:
      params, _ = restore_stage(policy, workdir / 'run', stage.name)
      after = tokens_of(engine, params, dataset, config)
      ends[stage.name] = after.logp[after.end]
    own = own_answers(engine, policy.params, dataset, config)
  diagnosis = {
    'demonstrations': min(config.eval.prompts, len(dataset)),
    'tokens': len(tokens.logp),
    'tau': config.loss.tau,
    'steps': config.stages[0].steps,
    **weights(tokens, config.loss.tau),
    'implicit reward': own | likelihood(tokens),
    'entropy per token': entropy,
    'probability of the end': {k: describe(v) for k, v in ends.items()},
    'largest weights': largest(tokens, dataset, policy.tokenizer),
  }
  return diagnosis, tokens


def tokens_of(
  engine: Engine, params: Params, dataset: data.Dataset, config: Config
) -> Tokens:
  """The tokens of the first `eval.prompts` demonstrations."""
  parts, first, size = [], 0, rows_of_batch(dataset, config)
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


def rows_of_batch(dataset: data.Dataset, config: Config) -> int:
  """Rows of a batch of the first `eval.prompts` demonstrations."""
  count = min(config.eval.prompts, len(dataset))
  return even_rows(count, config.eval.batch_size, config.mesh)


def weights(tokens: Tokens, tau: float) -> dict[str, object]:
  """SFT's weight 1/p, who carries it and the gradient, and what τ rectifies."""
  everything = np.ones(tokens.logp.shape, bool)
  inverse = np.asarray(diagnostics.inverse_probability(tokens.logp))
  coefficient = {
    'sft': np.ones_like(inverse),
    'dft': np.asarray(dynamic_coefficient(tokens.logp, tau=1.0)),
    'gft': np.asarray(dynamic_coefficient(tokens.logp, tau=tau)),
  }

  def share(values: np.ndarray) -> float:
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
  engine: Engine, params: Params, dataset: data.Dataset, config: Config
) -> Numbers:
  """How often the policy writes y*, or a right answer, by itself."""
  settings, same, right = config.eval, [], []
  size = rows_of_batch(dataset, config)
  asked = pipeline.in_order(dataset, settings.prompts, size)
  for number, examples in enumerate(asked):
    count = len(examples.index)
    prompts = groups.pad_rows(pipeline.prompts_of(examples), size)
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
      sampled.replace(tokens=tokens, length=length), config.sampler, prompts
    )
    scored = engine.score(
      evaluation_reward(config),
      f'diagnosis/{number}',
      examples.problems,
      texts,
      np.asarray(length) > 0,
      finished,
    )
    right.append(generations.is_right(scored.values, settings.threshold))
  return {
    'answers sampled': np.concatenate(same).size,
    'share that is the demonstration': float(np.concatenate(same).mean()),
    'share that is right': float(np.concatenate(right).mean()),
  }


def likelihood(tokens: Tokens) -> Numbers:
  """Probability that one answer of the policy is the demonstration."""
  total = np.bincount(tokens.row, tokens.logp.astype(np.float64))
  return {
    'log10 of its probability, median': float(np.median(total) / np.log(10)),
    'log10 of its probability, largest': float(total.max() / np.log(10)),
  }


def describe(logp: np.ndarray) -> Numbers:
  """Mean, median and lower share of probabilities."""
  p = np.exp(logp)
  return {
    'mean': float(p.mean()),
    'median': float(np.median(p)),
    'share below 0.1': float((p < 0.1).mean()),
  }


def largest(
  tokens: Tokens,
  dataset: data.Dataset,
  tokenizer: PreTrainedTokenizerBase,
  count: int = 12,
) -> list[dict[str, object]]:
  """The least likely tokens with what stands before them."""
  found: list[dict[str, object]] = []
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
