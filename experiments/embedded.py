"""What the recipes of configs/embedded share: one task, one base policy.

A decoder of 0.2M parameters learns a mixture of styles of chain arithmetic
(stage `base`); each recipe then gives it one arm. Group methods see 16 prompts
x 8 answers a step. Methods that only imitate see 160 answers a step: ten times
the prompts, the paper's convention (100k samples against 10k x 8).
"""

from gft_jax.config import (
  CheckpointConfig,
  Config,
  DataConfig,
  EvalConfig,
  GroupConfig,
  OptimizerConfig,
  Stage,
)

STEPS = 80
PROMPTS = 16
# Prompts that an imitating method sees for each of a group method.
PROMPTS_RATIO = 10

PRETRAINING = (
  'group.teachers=0',
  'group.samples=0',
  'data.split=pretrain',
  'data.batch_size=64',
  'optimizer.learning_rate=2e-3',
  'optimizer.schedule=cosine',
  'optimizer.warmup_steps=100',
  'optimizer.b2=0.98',
  'checkpoint.every=200',
)
# One expert answer a prompt; the expert is terse: 12 tokens hold each.
DEMONSTRATIONS = (
  'group.teachers=0',
  'group.samples=0',
  'data.max_response=12',
  f'data.batch_size={PROMPTS_RATIO * PROMPTS}',
)
# Expert and teachers: four answers a prompt.
MIXTURE = (
  'group.samples=0',
  f'data.batch_size={PROMPTS_RATIO * PROMPTS // 4}',
)
# The policy's own answers alone.
OWN_SAMPLES = ('group.experts=0', 'group.teachers=0', 'group.samples=8')
# One expert beside seven own answers.
EXPERT_AND_SAMPLES = ('group.teachers=0', 'group.samples=7')


def config(
  name: str, objective: str, overrides: tuple[str, ...] = ()
) -> Config:
  """The base policy, and one arm that starts from it."""
  return Config(
    data=DataConfig(batch_size=PROMPTS, max_prompt=14, max_response=40),
    group=GroupConfig(experts=1, teachers=3, samples=4),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    checkpoint=CheckpointConfig(every=20),
    eval=EvalConfig(base='base', prompts=256),
    stages=(
      Stage('base', '', 'sft', 1100, PRETRAINING),
      Stage(name, 'base', objective, STEPS, overrides),
    ),
  )
