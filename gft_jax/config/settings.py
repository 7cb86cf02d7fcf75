"""Every setting of a run: frozen nested dataclasses, one default per field.

A function receives its own sub-config or plain keywords, never the whole.
`override(config, 'loss.tau=0.2')` is the only way in from the command line;
checks raise ConfigError and name both numbers that disagree.
"""

import dataclasses
import json
import math
import re
from typing import TypeVar

from gft_jax.config.checks import (
  ConfigError,
  not_negative,
  one_of,
  positive,
  require,
)

Value = TypeVar('Value')


def setting(default: Value, meaning: str) -> Value:
  """A dataclass field with its default and the meaning that --help prints."""
  return dataclasses.field(default=default, metadata={'meaning': meaning})


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Shape of a decoder of the Llama and Qwen2 families."""

  vocab_size: int = setting(0, 'tokens; 0 takes the size of the tokenizer')
  width: int = setting(96, 'D, size of the residual stream')
  layers: int = setting(2, 'L, decoder blocks')
  heads: int = setting(4, 'H, query heads')
  kv_heads: int = setting(4, 'N, key and value heads; divides heads')
  head_size: int = setting(24, 'K, size of one head')
  mlp_width: int = setting(256, 'width of the gated MLP')
  rope_theta: float = setting(10000.0, 'base of the rotary frequencies')
  rope_scaling: tuple[float, float, float, int] | None = setting(
    None,
    'Llama-3 scaling: factor, low and high frequency factor, original context',
  )
  norm_epsilon: float = setting(1e-5, 'epsilon of every RMSNorm')
  qkv_bias: bool = setting(False, 'biases on q, k and v (Qwen2)')
  tied_head: bool = setting(False, 'the head is the transposed embedding')
  max_positions: int = setting(2048, 'longest prompt + response in tokens')

  def __post_init__(self):
    for name in (
      *('width', 'layers', 'heads', 'kv_heads', 'head_size', 'mlp_width'),
      'max_positions',
    ):
      positive(f'model.architecture.{name}', getattr(self, name))
    not_negative('model.architecture.vocab_size', self.vocab_size)
    require(
      self.heads % self.kv_heads == 0,
      f'model.architecture.heads={self.heads} is not a multiple of'
      f' kv_heads={self.kv_heads}',
    )
    require(
      self.head_size % 2 == 0,
      f'model.architecture.head_size={self.head_size} must be even for RoPE',
    )


# The matrices of a decoder block.
PROJECTIONS = ('query', 'key', 'value', 'output', 'gate', 'up', 'down')


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters beside frozen projections; see models.lora."""

  rank: int = setting(
    0, 'r of the adapters, which alone are trained; 0: no adapters'
  )
  alpha: float = setting(32.0, 'adapters are scaled by alpha / rank')
  targets: tuple[str, ...] = setting(
    PROJECTIONS, f'projections with an adapter, of {", ".join(PROJECTIONS)}'
  )

  def __post_init__(self):
    require(self.rank >= 0, f'model.lora.rank={self.rank} is negative')
    positive('model.lora.alpha', self.alpha)
    require(bool(self.targets), 'model.lora.targets names no projection')
    for target in self.targets:
      one_of('model.lora.targets', target, PROJECTIONS)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  path: str = setting(
    '',
    'Hugging Face folder, or owner/name or owner/name@revision on the hub, or'
    ' a stage of a run as WORKDIR:STAGE; empty: train from scratch',
  )
  tokenizer: str = setting(
    '',
    'folder or hub id of the tokenizer when path is empty; empty: the embedded'
    ' one',
  )
  architecture: Architecture = setting(
    Architecture(), 'the shape when path is empty'
  )
  dtype: str = setting(
    'float32',
    'dtype of the computation; products of float32 are exact to float32 on'
    ' every device, without TF32 or bfloat16, unless'
    ' JAX_DEFAULT_MATMUL_PRECISION says otherwise',
  )
  param_dtype: str = setting(
    'float32',
    'dtype of the master parameters; with lora that of the frozen ones, for'
    ' adapters are float32',
  )
  remat: str = setting(
    'dots',
    'what the backward pass recomputes: none, dots (all but products with'
    ' parameters and the results of attention) or full (all but the input of'
    ' each layer)',
  )
  lora: LoraConfig = setting(LoraConfig(), 'low-rank adapters')

  def __post_init__(self):
    for name in ('dtype', 'param_dtype'):
      one_of(f'model.{name}', getattr(self, name), ('float32', 'bfloat16'))
    one_of('model.remat', self.remat, ('none', 'dots', 'full'))


@dataclasses.dataclass(frozen=True)
class DataConfig:
  path: str = setting(
    '',
    'JSONL, JSON, CSV or parquet file of prompts or conversations;'
    ' hub:OWNER/NAME[:CONFIG[:SPLIT]] of the Hugging Face hub;'
    ' reasoning_gym/TASK, graded by reward.function=gft_jax.data.gym:score;'
    ' empty: the embedded arithmetic task; arithmetic/STYLE: with another'
    ' expert: verbose, hesitant, repeating or guessing',
  )
  eval_path: str = setting(
    '', 'held-out rows, named like path; empty: rows cut off it'
  )
  cache: str = setting(
    '~/.cache/gft_jax', 'where prepared datasets are kept (ArrayRecord)'
  )
  split: str = setting('train', 'split that this stage trains on')
  columns: str = setting(
    '',
    'columns of the file as role=name pairs, for instance'
    ' prompt=question,answer=reward_model.ground_truth, with a dot into a nested'
    ' column; roles: prompt, input (more of the prompt), system, answer, expert,'
    ' teacher (a list; or a column for each, teacher=a,teacher=b), tools, or'
    ' messages for prompt and expert; a role that is not named is guessed from the names'
    ' of the columns, and role= says that none has it',
  )
  template: str = setting(
    'auto', 'prompt format: plain, chat (the tokenizer has a template) or auto'
  )
  template_args: str = setting(
    '',
    'arguments of the chat template, as name=value,name=value with values in'
    ' JSON or as words, for instance enable_thinking=false',
  )
  special_tokens: str = setting(
    'drop',
    'texts of the data that hold a special token, such as <|im_end|>: drop'
    ' (they are named), escape (it is read as ordinary text) or keep (as the'
    ' token)',
  )
  instruction: str = setting('', 'text added to each prompt after a newline')
  system: str = setting(
    '',
    'system turn of each prompt that has none of its own, in the chat template;'
    " empty: the template's own default, if any",
  )
  batch_size: int = setting(16, 'B, prompts per step over all devices')
  max_prompt: int = setting(1024, 'P, tokens; a longer prompt is dropped')
  max_response: int = setting(1024, 'T, tokens with EOS; longer is dropped')
  max_dropped: float = setting(
    0.2, 'largest share of dropped rows before the run refuses to start'
  )
  rows: int = setting(0, 'rows to use; 0: all of them')

  def __post_init__(self):
    for name in ('batch_size', 'max_prompt', 'max_response'):
      positive(f'data.{name}', getattr(self, name))
    not_negative('data.rows', self.rows)
    one_of('data.template', self.template, ('auto', 'plain', 'chat'))
    one_of(
      'data.special_tokens', self.special_tokens, ('drop', 'escape', 'keep')
    )
    template_arguments(self.template_args)


def template_arguments(text: str) -> dict[str, object]:
  """The values of `data.template_args` by name.

  A value is JSON; what is none is a word, with or without single quotes. Words
  for true and false (True, yes, on, no, off, ...) and None are read as such. All
  of it may stand in quotes, as in a shell.

  Raises:
    ConfigError: it is not of the form name=value,name=value.
  """
  decoder, found, rest = json.JSONDecoder(), {}, text.strip()
  if len(rest) > 1 and rest[0] in ('"', "'") and rest[-1] == rest[0]:
    rest = rest[1:-1]
  words: dict[str, object] = {
    **dict.fromkeys(('true', 'yes', 'on'), True),
    **dict.fromkeys(('false', 'no', 'off'), False),
    **dict.fromkeys(('none', 'null')),
  }
  while rest:
    name = re.match(r'(\w+)\s*=\s*(?=[^\s,])', rest)
    require(
      name is not None and name[1] not in found,
      f'data.template_args={text!r} is not of the form name=value,name=value,'
      ' each name once, for instance enable_thinking=false',
    )
    assert name is not None
    rest = rest[name.end() :]
    try:
      value, end = decoder.raw_decode(rest)
      whole = rest[end:].lstrip()[:1] in ('', ',')
    except ValueError:
      value, end, whole = None, 0, False
    if not whole:
      quoted = re.match(r"'([^']*)'\s*(?=,|$)", rest)
      end = quoted.end() if quoted else f'{rest},'.index(',')
      word = quoted[1] if quoted else rest[:end].strip()
      value = words.get(word.lower(), word)
    found[name[1]] = value
    rest = rest[end:].lstrip().removeprefix(',').lstrip()
  return found


@dataclasses.dataclass(frozen=True)
class GroupConfig:
  """The paper's default group is 1 expert + 3 teachers + 4 samples."""

  experts: int = setting(1, 'expert answers per group, 0 or 1')
  teachers: int = setting(3, 'teacher answers per group; 0 is "no mix"')
  samples: int = setting(4, "the policy's own answers per group")
  refills: int | None = setting(
    None,
    'further rollouts of a step that may replace groups whose rewards are all'
    ' equal (dynamic sampling); none: as the objective was published',
  )

  def __post_init__(self):
    for name in ('experts', 'teachers', 'samples'):
      count = getattr(self, name)
      require(count >= 0, f'group.{name}={count} must not be negative')
    require(self.experts <= 1, f'group.experts={self.experts} is more than 1')
    require(self.size > 0, 'group: experts + teachers + samples is 0')
    require(
      (self.refills or 0) >= 0,
      f'group.refills={self.refills} must not be negative',
    )

  @property
  def size(self) -> int:
    """G."""
    return self.experts + self.teachers + self.samples


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  temperature: float = setting(1.0, '0 is greedy')
  top_k: int = setting(0, 'keep the k likeliest tokens; 0: all')
  top_p: float = setting(1.0, 'keep the likeliest tokens of this mass')
  min_p: float = setting(0.0, 'drop tokens under this share of the likeliest')
  stop_ids: tuple[int, ...] = setting((), 'token ids that stop besides EOS')
  stop_strings: tuple[str, ...] = setting(
    (),
    'texts that stop, the token that completes one is the last; with quotes as'
    " in Python where they hold spaces or commas: '\\n\\n','Q:'",
  )

  def __post_init__(self):
    require(
      self.temperature >= 0,
      f'sampler.temperature={self.temperature} must not be negative',
    )
    require(self.top_k >= 0, f'sampler.top_k={self.top_k} must be >= 0')
    require('' not in self.stop_strings, "sampler.stop_strings: '' is no text")
    require(0 < self.top_p <= 1, f'sampler.top_p={self.top_p} not in (0, 1]')
    require(0 <= self.min_p <= 1, f'sampler.min_p={self.min_p} not in [0, 1]')


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  function: str = setting(
    '',
    'the reward that grades answers, required wherever answers are graded: one,'
    ' or a weighted sum as in math + 0.2 * format, of arithmetic,'
    ' math (math-verify), choice (a letter), exact, numeric, format, length,'
    ' model (of reward.model), or the import path of your own (prompt, answer,'
    ' response) -> float, as package.module:function; it may name columns of the'
    ' dataset, and a reward of TRL works as it is',
  )
  workers: int = setting(
    0, 'guarded processes; 0 grades in this process, for rewards you trust'
  )
  timeout_s: float = setting(5.0, 'seconds that one answer may take')
  memory_mb: int = setting(2048, 'address space of one worker')
  model: str = setting(
    '', 'Hugging Face folder of a sequence-classification reward model'
  )
  tolerance: float = setting(1e-4, 'relative, of the reward numeric')
  pattern: str = setting(
    r'\\boxed\{.+\}', 'regular expression that the reward format looks for'
  )
  length_limit: int = setting(
    4096, 'characters at which the reward length is 1'
  )

  def __post_init__(self):
    require(self.workers >= 0, f'reward.workers={self.workers} is negative')
    require(
      self.tolerance >= 0, f'reward.tolerance={self.tolerance} is negative'
    )
    try:
      re.compile(self.pattern)
    except re.error as error:
      raise ConfigError(
        f'reward.pattern={self.pattern!r} is no regular expression: {error}'
      ) from None
    positive('reward.length_limit', self.length_limit)
    positive('reward.timeout_s', self.timeout_s)
    positive('reward.memory_mb', self.memory_mb)


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Hyper-parameters of objectives.

  None is the value with which the objective was published; see
  `objectives.resolve`. The others are read by few objectives.
  """

  tau: float = setting(0.7, 'threshold of the dynamic coefficient (Eq. 5)')
  rectify_end: bool = setting(
    True,
    'rectify the last token of an answer like any other; false keeps its'
    " coefficient at 1, so that an unlikely EOS is learned (the paper's is"
    ' true)',
  )
  epsilon: float = setting(1e-6, 'added to the std of a group (Eq. 4)')
  behavior: str | None = setting(
    None,
    'what the ratio divides by: sampler (its log-probabilities) or recomputed'
    ' (the policy as the step begins); none: as published',
  )
  clip_low: float | None = setting(
    None, 'ratio clip below 1; none: as published'
  )
  clip_high: float | None = setting(
    None, 'ratio clip above 1; none: as published'
  )
  dual_clip: float | None = setting(
    None,
    'bound of the ratio where the advantage is negative; 0: no bound; none: as'
    ' published',
  )
  reduction: str | None = setting(
    None,
    'token_mean, sequence_mean, token_sum, length_mean or length_sum; none: as'
    ' published',
  )
  entropy_bonus: float | None = setting(
    None, 'weight of the entropy per token, added; none: as published'
  )
  kl: str | None = setting(
    None,
    'KL to the policy that the stage starts from: k1, k2, k3 or abs of the'
    ' trained tokens, or forward, exact KL(start || policy) over the'
    ' vocabulary; none: as published',
  )
  kl_weight: float | None = setting(
    None, 'weight of that KL per token; none: as published'
  )
  overlong_penalty: float | None = setting(
    None,
    'taken off the reward of an answer that reaches max_response (DAPO); none:'
    ' as published',
  )
  overlong_share: float = setting(
    0.2, 'last share of max_response, in which that penalty rises from 0'
  )
  shaping: float = setting(0.1, "gamma of LUFFY's p / (p + gamma)")
  sft_weight: float = setting(1.0, 'weight of imitation in grpo_sft')
  mu_peak: float | None = setting(
    None, "CHORD's weight of imitation after its warm-up; none: as published"
  )
  mu_valley: float | None = setting(
    None, 'the same after its decay; none: as published'
  )
  mu_warmup_steps: int | None = setting(
    None, 'optimizer steps from 0 to the peak; none: as published'
  )
  mu_decay_steps: int | None = setting(
    None, 'optimizer steps from there to the valley; none: as published'
  )
  chunk: int = setting(
    512, 'tokens whose logits exist at one time, on a device'
  )

  def __post_init__(self):
    require(0 <= self.tau <= 1, f'loss.tau={self.tau} is not in [0, 1]')
    require(
      0 < self.overlong_share <= 1,
      f'loss.overlong_share={self.overlong_share} is not in (0, 1]',
    )
    for name in ('mu_peak', 'mu_valley'):
      value = getattr(self, name)
      require(
        value is None or 0 <= value <= 1, f'loss.{name}={value} not in [0, 1]'
      )
    for name in (
      'epsilon',
      'clip_low',
      'clip_high',
      'entropy_bonus',
      'kl_weight',
      'overlong_penalty',
      'sft_weight',
      'mu_warmup_steps',
      'mu_decay_steps',
    ):
      value = getattr(self, name)
      require(
        value is None or value >= 0, f'loss.{name}={value} must not be negative'
      )
    require(
      not self.dual_clip or self.dual_clip > 1,
      f'loss.dual_clip={self.dual_clip} is neither 0 nor above 1',
    )
    positive('loss.shaping', self.shaping)
    positive('loss.chunk', self.chunk)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  learning_rate: float = setting(1e-4, 'peak learning rate of AdamW')
  schedule: str = setting('constant', 'constant or cosine (to a fiftieth)')
  warmup_steps: int = setting(0, 'optimizer steps of linear warm-up')
  b1: float = setting(0.9, 'decay of the first moment')
  b2: float = setting(0.999, 'decay of the second moment')
  epsilon: float = setting(1e-8, "Adam's epsilon")
  weight_decay: float = setting(0.01, 'decoupled weight decay')
  mu_dtype: str = setting(
    'float32',
    'dtype of the first moment, float32 or bfloat16; the second is as the'
    ' parameters',
  )
  clip_norm: float = setting(1.0, 'largest global gradient norm; 0: no limit')
  mini_batches: int = setting(
    1, 'optimizer steps per rollout; whole groups, so it divides batch_size'
  )
  micro_batches: int = setting(
    1, 'parts of a mini-batch whose gradients are added (memory only)'
  )

  def __post_init__(self):
    one_of('optimizer.mu_dtype', self.mu_dtype, ('float32', 'bfloat16'))
    one_of('optimizer.schedule', self.schedule, ('constant', 'cosine'))
    positive('optimizer.mini_batches', self.mini_batches)
    positive('optimizer.micro_batches', self.micro_batches)
    for name in ('b1', 'b2'):
      value = getattr(self, name)
      require(0 <= value < 1, f'optimizer.{name}={value} is not in [0, 1)')
    for name in ('learning_rate', 'warmup_steps', 'weight_decay', 'clip_norm'):
      not_negative(f'optimizer.{name}', getattr(self, name))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  data: int = setting(
    1, 'devices that hold different prompts; a run says how many stay idle'
  )
  fsdp: int = setting(1, 'devices that also share the parameters')
  tensor: int = setting(1, 'devices that share each matrix product')
  rollout_tensor: int = setting(
    0, 'devices that share a matrix product of the sampler; 0: as in training'
  )

  def __post_init__(self):
    for name in ('data', 'fsdp', 'tensor'):
      positive(f'mesh.{name}', getattr(self, name))
    require(
      self.rollout_tensor >= 0
      and (self.size % max(self.rollout_tensor, 1) == 0),
      f'mesh.rollout_tensor={self.rollout_tensor} does not divide the'
      f' {self.size} devices of the mesh',
    )

  @property
  def size(self) -> int:
    """Devices in all."""
    return self.data * self.fsdp * self.tensor


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  every: int = setting(50, 'steps between checkpoints; the last is always kept')
  keep: int = setting(2, 'checkpoints kept per stage')
  best: str = setting(
    '',
    'number of an evaluation, for instance eval/test/avg@4: every evaluation is'
    ' saved, and the step with the largest is kept besides; empty: none',
  )

  def __post_init__(self):
    positive('checkpoint.every', self.every)
    positive('checkpoint.keep', self.keep)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  every: int = setting(0, 'steps between evaluations; 0: only after the stage')
  before: bool = setting(True, 'evaluate a model.path before its first step')
  splits: tuple[str, ...] = setting(
    ('test',), 'held-out splits; none: nothing is evaluated'
  )
  prompts: int = setting(128, 'prompts per split')
  samples: int = setting(4, 'answers per prompt')
  ks: tuple[int, ...] = setting(
    (1, 4), 'k of the unbiased pass@k, and of maj@k'
  )
  reward: str = setting(
    '', 'reward of evaluations; empty: the first part of reward.function'
  )
  threshold: float = setting(
    1.0, 'an answer is right where the reward of evaluations is at least this'
  )
  temperature: float = setting(0.5, 'temperature of the graded answers')
  max_response: int = setting(1024, 'tokens of an answer')
  kl_prompts: int = setting(
    128,
    'prompts for entropy and KL to the base policy, on own samples at'
    ' temperature 1; 0: neither',
  )
  batch_size: int = setting(
    128, 'most prompts of a call of the sampler; calls are of equal size'
  )
  base: str = setting(
    '',
    'stage whose result is the base policy of the KL, for a run that'
    ' pre-trains; empty: the policy that the first stage starts from',
  )

  def __post_init__(self):
    for name in ('prompts', 'samples', 'max_response', 'batch_size'):
      positive(f'eval.{name}', getattr(self, name))
    for name in ('every', 'temperature', 'kl_prompts'):
      not_negative(f'eval.{name}', getattr(self, name))
    require(all(k >= 1 for k in self.ks), f'eval.ks={self.ks} has a k below 1')
    require(
      math.isfinite(self.threshold),
      f'eval.threshold={self.threshold} must be a finite number',
    )
    require(
      not self.ks or max(self.ks) <= self.samples,
      f'eval.ks={self.ks} has a k above eval.samples={self.samples}',
    )


@dataclasses.dataclass(frozen=True)
class LogConfig:
  progress: bool = setting(True, 'a progress bar per stage')
  tensorboard: bool = setting(True, 'event files under workdir/tensorboard')
  wandb: bool = setting(False, 'Weights & Biases, if it is installed')
  report: bool = setting(True, 'figures and a page when the run is done')
  profile: str = setting(
    '',
    'steps to trace with jax.profiler into workdir/profile/STAGE: 3..5 of every'
    ' stage, or gft:3..5 of one; empty: none',
  )

  def __post_init__(self):
    profiled_steps(self.profile, '')


def profiled_steps(profile: str, stage: str) -> range:
  """The steps of a stage that `log.profile` names; a range may be empty.

  Raises:
    ConfigError: it is not of the form 3..5 or STAGE:3..5.
  """
  if not profile:
    return range(0)
  match = re.fullmatch(r'(?:(.+):)?([1-9]\d*)\.\.([1-9]\d*)', profile)
  named, *ends = match.groups() if match else ('', '1', '0')
  first, last = map(int, ends)
  require(
    first <= last,
    f'log.profile={profile!r} is not of the form 3..5 or STAGE:3..5, the first'
    ' and the last step',
  )
  return range(first, last + 1) if named in (None, stage) else range(0)


@dataclasses.dataclass(frozen=True)
class Stage:
  """One node of the tree of stages; its optimizer state is fresh."""

  name: str = setting('gft', 'name, unique in the run')
  start: str = setting('', 'earlier stage to start from; empty: the model')
  objective: str = setting('gft', 'row of training.objectives.OBJECTIVES')
  steps: int = setting(100, 'rollouts, each of optimizer.mini_batches updates')
  overrides: tuple[str, ...] = setting(
    (),
    'settings of this stage, for instance optimizer.learning_rate=1e-4; --set'
    ' stages.NAME.optimizer.learning_rate=1e-4 writes one, and --set'
    ' optimizer.learning_rate=1e-4 removes it, for it holds in every stage',
  )
  tokens: int = setting(
    0, 'end after the step in which so many tokens have trained; 0: no limit'
  )
  seconds: float = setting(
    0.0,
    'end after the step in which training has taken so long, without'
    ' compilation, evaluation and checkpoints; 0: no limit',
  )

  def __post_init__(self):
    require(
      bool(self.name.strip('.')) and not set(self.name) & set('/[]*?\\'),
      f'stages: {self.name!r} is to name a folder of checkpoints, which needs a'
      ' letter or digit and none of / [ ] * ? \\',
    )
    positive(f'stages.{self.name}.steps', self.steps)
    for name in ('tokens', 'seconds'):
      value = getattr(self, name)
      require(value >= 0, f'stages.{self.name}.{name}={value} is negative')


@dataclasses.dataclass(frozen=True)
class Config:
  seed: int = setting(0, 'root of every random stream')
  model: ModelConfig = setting(ModelConfig(), 'the policy')
  data: DataConfig = setting(DataConfig(), 'prompts and given answers')
  group: GroupConfig = setting(GroupConfig(), 'composition of a group')
  sampler: SamplerConfig = setting(SamplerConfig(), 'rollouts')
  reward: RewardConfig = setting(RewardConfig(), 'text to score')
  loss: LossConfig = setting(LossConfig(), 'hyper-parameters of objectives')
  optimizer: OptimizerConfig = setting(OptimizerConfig(), 'AdamW')
  mesh: MeshConfig = setting(MeshConfig(), 'devices')
  checkpoint: CheckpointConfig = setting(CheckpointConfig(), 'Orbax')
  eval: EvalConfig = setting(EvalConfig(), 'held-out evaluation')
  log: LogConfig = setting(LogConfig(), 'writers besides metrics.jsonl')
  stages: tuple[Stage, ...] = setting((Stage(),), 'the tree of stages')

  def __post_init__(self):
    require(
      abs(self.seed) < 1 << 31, f'seed={self.seed} is not below 2^31 in size'
    )
    seen = []
    for stage in self.stages:
      require(
        stage.name not in seen, f'stages: two stages are named {stage.name!r}'
      )
      require(
        not stage.start or stage.start in seen,
        f'stages.{stage.name}.start={stage.start!r} is not an earlier stage;'
        f' earlier: {", ".join(seen) or "none"}',
      )
      seen.append(stage.name)
