"""The recipes `paper/NAME`: the paper's model, data and methods.

  python experiments/train.py --config paper/gft --workdir runs/gft

The model is Qwen2.5-Math-1.5B on 16 TPU chips; `--set model.path=...` takes the
paper's others (experiments/pods/README.md says on which chips they fit).

Values of the group methods: examples/gft_trainer/run_qwen2.5-math-1.5B.sh of
ZJU-OmniAI/GFT at 763384d: 128 prompts x 8 answers, 1,024 + 2,048 tokens, AdamW at
1e-6 constant, clip 1, weight decay 0.01, float32 master weights with bfloat16
compute; 78 rollouts of 4 updates are its 10,000 prompts. The threshold is the
paper's best, 0.7 (Figure 6); that script has 0.1, the scripts for its other models
had 0.5. Methods that imitate see 100,000 answers (section 4.1). What each method
changes has its source below; where the paper does not say, it is that of the
method's own authors.

Not taken over, so that methods differ in their objective alone:
* All group methods but LUFFY have 4 updates a rollout. In the official script the
  number follows from the composition (256 of 1,024 answers an update with four
  samples; with eight there would be 2), so its sweeps change both.
* All have 1,024 + 2,048 tokens and one epoch. Their authors have: SFT and DFT
  2,048 in all, ASFT 512 and three epochs (kept), PSFT 2,048 + 36,864 and 25
  epochs, LUFFY a response of 8,192, by which its loss is divided (here by 2,048).
* All have float32 master weights; DFT's command and ASFT have bfloat16 ones.
* All see the instruction, after a line break; the official script has a space
  there, and its SFT and DFT none of it.
* A cosine ends at a fiftieth of its peak (optimizer.py), where theirs end at 0.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from gft_jax.config import (
  Config,
  DataConfig,
  EvalConfig,
  GroupConfig,
  LossConfig,
  MeshConfig,
  ModelConfig,
  OptimizerConfig,
  RewardConfig,
  Stage,
)

# Steps of a phase of a pipeline; answers of a group; thresholds of a sweep.
PHASE = 90
GROUP = 8
TAUS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Method(NamedTuple):
  """A row of Table 1.

  Attributes:
    objective: a row of objectives.OBJECTIVES.
    steps: rollouts, or batches of demonstrations.
    overrides: what differs from GFT.
    chips: that the batch divides by.
  """

  objective: str
  steps: int
  overrides: tuple[str, ...] = ()
  chips: int = 16


# The policy's own answers alone; and one expert beside seven of them.
OWN_SAMPLES = ('group.experts=0', 'group.teachers=0', 'group.samples=8')
EXPERT_AND_SAMPLES = ('group.teachers=0', 'group.samples=7')

# The expert's answer alone, 256 a batch, for one epoch of 100,000: the command in
# DFT's README (yongliang-wu/DFT), whose trainer has the other values.
IMITATION = (
  'group.teachers=0',
  'group.samples=0',
  'data.rows=100_000',
  'data.batch_size=256',
  'optimizer.learning_rate=5e-5',
  'optimizer.schedule=cosine',
  'optimizer.warmup_steps=39',
  'optimizer.b2=0.95',
  'optimizer.mini_batches=1',
  'optimizer.micro_batches=4',
)

METHODS = {
  'gft': Method('gft', 78),
  # No distilled answers (README of the official code, Table 1). How many samples
  # replace them is not published; here the group stays at 8.
  'gft_no_mix': Method('gft', 78, EXPERT_AND_SAMPLES),
  # The ablations of Table 2; of them nothing else is published.
  'gft_no_dcr': Method('gft_no_dcr', 78),
  'gft_no_gal': Method('gft_no_gal', 390, IMITATION),
  'grpo': Method('grpo', 78, OWN_SAMPLES),
  'sft': Method('sft', 390, IMITATION),
  # Expert and teachers, four answers a prompt; the ratio is not published.
  'sft_mix': Method(
    'sft', 390, (*IMITATION, 'group.teachers=3', 'data.batch_size=64')
  ),
  'dft': Method('dft', 390, IMITATION),
  # Three epochs of batches of 64 at 2e-5 without weight decay: train_v2.py of
  # zhuchichi56/ASFT at 6f6f51c, whose schedule is linear; here it is a cosine.
  'asft': Method(
    'asft',
    4687,
    (
      *IMITATION,
      'data.batch_size=64',
      'optimizer.learning_rate=2e-5',
      'optimizer.warmup_steps=0',
      'optimizer.b2=0.999',
      'optimizer.weight_decay=0',
    ),
  ),
  # 64 demonstrations, 8 updates, 1e-6 after 10 steps of warm-up, which are 80
  # updates: recipe/psft of zwhong714/PSFT at 569b1ba.
  'psft': Method(
    'psft',
    1562,
    (
      *IMITATION,
      'data.batch_size=64',
      'optimizer.learning_rate=1e-6',
      'optimizer.schedule=constant',
      'optimizer.warmup_steps=80',
      'optimizer.b2=0.999',
      'optimizer.weight_decay=0.1',
      'optimizer.micro_batches=1',
      'optimizer.mini_batches=8',
    ),
    chips=8,  # each of 8 updates sees 8 answers
  ),
  # Two updates a rollout: exp_scripts/train.sh of ElliottYan/LUFFY at 01f4ae0.
  'luffy': Method(
    'luffy',
    78,
    (
      *EXPERT_AND_SAMPLES,
      'optimizer.mini_batches=2',
      'optimizer.micro_batches=4',
    ),
  ),
  # CHORD-phi, whose weight of imitation is 0.1: chord_policy_loss.py of
  # Trinity-RFT. One expert for 7 samples; there it is one for 4.
  'chord': Method('chord_phi', 78, EXPERT_AND_SAMPLES),
}


def stage(
  method: str,
  *more: str,
  name: str = '',
  start: str = '',
  steps: int = 0,
) -> Stage:
  """A stage of METHODS under further overrides.

  It starts from the model unless `start` names a stage, and its curves have six
  points.
  """
  objective, own, overrides, _ = METHODS[method]
  steps = steps or own
  overrides = (*overrides, f'eval.every={steps // 6}', *more)
  return Stage(name or method, start, objective, steps, overrides)


def config(*stages: Stage, chips: int = 16) -> Config:
  """GFT as the paper trains it, in these stages."""
  return Config(
    model=ModelConfig(
      path='Qwen/Qwen2.5-Math-1.5B', dtype='bfloat16', remat='full'
    ),
    data=DataConfig(
      path='hub:OmniAI-ZJU/NuminaMath-Cot-Distillation-100K',
      instruction=(
        "Let's think step by step and output the final answer within \\boxed{}."
      ),
      batch_size=128,
      max_prompt=1024,
      max_response=2048,
      rows=10_000,
    ),
    group=GroupConfig(experts=1, teachers=3, samples=4),
    reward=RewardConfig(function='math', workers=8),
    loss=LossConfig(tau=0.7),
    optimizer=OptimizerConfig(
      learning_rate=1e-6, mini_batches=4, micro_batches=2
    ),
    mesh=MeshConfig(fsdp=chips),
    eval=EvalConfig(
      splits=('test',), max_response=2048, batch_size=32, kl_prompts=32
    ),
    stages=stages,
  )


def method(name: str) -> Config:
  """One row of METHODS."""
  return config(stage(name), chips=METHODS[name].chips)


def pipelines() -> Config:
  """SFT, GFT and GRPO, alone and one after another: Figures 1b and 4.

  A phase of SFT is 90 batches of 256, 39 of them warm-up. The paper's bar of
  SFT alone is that of Table 1, 100,000 answers: paper/sft. Whether its chains
  begin with all of them or with a phase is not published.
  """

  def phase(method: str, name: str, start: str = '') -> Stage:
    return stage(method, name=name, start=start, steps=PHASE)

  return config(
    phase('sft', 'sft'),
    phase('gft', 'gft'),
    phase('grpo', 'grpo'),
    phase('grpo', 'sft_grpo', 'sft'),
    phase('gft', 'sft_gft', 'sft'),
    phase('grpo', 'gft_grpo', 'gft'),
    phase('grpo', 'sft_gft_grpo', 'sft_gft'),
  )


def compositions() -> Config:
  """GFT with eight demonstrations to none in a group of eight: Table 5.

  A demonstration is the expert's or a teacher's.
  """

  def group(demonstrations: int) -> Stage:
    return stage(
      'gft',
      f'group.experts={min(demonstrations, 1)}',
      f'group.teachers={max(demonstrations - 1, 0)}',
      f'group.samples={GROUP - demonstrations}',
      name=f'group_{demonstrations}_{GROUP - demonstrations}',
    )

  return config(*map(group, (8, 6, 4, 2, 0)))


def thresholds() -> Config:
  """GFT with every τ of a sweep: Figure 6, whose own grid is not published."""
  return config(
    *(stage('gft', f'loss.tau={tau}', name=f'tau_{tau}') for tau in TAUS)
  )


RECIPES: dict[str, Callable[[], Config]] = {
  name: functools.partial(method, name) for name in METHODS
} | {
  'pipelines': pipelines,
  'compositions': compositions,
  'thresholds': thresholds,
}
