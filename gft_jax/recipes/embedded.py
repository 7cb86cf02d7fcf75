"""The recipes `embedded/ARM`: one task, one base policy, one objective each.

A decoder of 0.2M parameters learns a mixture of styles of chain arithmetic
(stage `base`); each recipe then gives it one arm. Group methods see 16 prompts
x 8 answers a step. Methods that only imitate see 160 answers a step: ten times
the prompts, the paper's convention (100k samples against 10k x 8).

  python experiments/train.py --config embedded/gft --workdir runs/gft

Hardware: 2 CPU cores; see experiments/README.md for times and numbers.
"""

import dataclasses
from typing import NamedTuple

from gft_jax.config import (
  CheckpointConfig,
  Config,
  DataConfig,
  EvalConfig,
  GroupConfig,
  OptimizerConfig,
  RewardConfig,
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


# The task itself: a prompt has up to 14 tokens, a teacher's answer up to 40, and
# longer chains need 52.
DATA = DataConfig(batch_size=PROMPTS, max_prompt=14, max_response=40)
REWARD = RewardConfig(function='arithmetic')
EVALUATION = EvalConfig(
  splits=('test', 'ood_length', 'ood_operator'), max_response=52, base='base'
)


def config(
  name: str, objective: str, overrides: tuple[str, ...] = ()
) -> Config:
  """The base policy, and one arm that starts from it."""
  return Config(
    data=DATA,
    group=GroupConfig(experts=1, teachers=3, samples=4),
    reward=REWARD,
    optimizer=OptimizerConfig(learning_rate=1e-4),
    checkpoint=CheckpointConfig(every=20),
    eval=dataclasses.replace(EVALUATION, prompts=256),
    stages=(
      Stage('base', '', 'sft', 1100, PRETRAINING),
      Stage(name, 'base', objective, STEPS, overrides),
    ),
  )


class Arm(NamedTuple):
  """A row of ARMS.

  Attributes:
    objective: a row of objectives.OBJECTIVES.
    paper: the item of the paper that it is part of, if any.
    overrides: what differs from GFT.
  """

  objective: str
  paper: str
  overrides: tuple[str, ...] = ()


ARMS = {
  'sft': Arm('sft', 'Tables 1 and 2', DEMONSTRATIONS),
  # SFT on expert and teacher answers alike. Teachers are wrong in about one
  # answer of eight, and are imitated all the same.
  'sft_mix': Arm('sft', 'Table 1', MIXTURE),
  'dft': Arm('dft', 'Table 1', DEMONSTRATIONS),
  # DFT with an exact KL to the base policy; its weight is the published 0.1.
  'asft': Arm('asft', 'Table 1', DEMONSTRATIONS),
  # Eight clipped updates a step as published, so each sees 20 demonstrations.
  'psft': Arm('psft', 'Table 1', (*DEMONSTRATIONS, 'optimizer.mini_batches=8')),
  'grpo': Arm('grpo', 'Table 1', OWN_SAMPLES),
  'dr_grpo': Arm('dr_grpo', '', OWN_SAMPLES),
  # Three further rollouts a step at most; the published recipe has nine.
  'dapo': Arm('dapo', '', (*OWN_SAMPLES, 'group.refills=3')),
  'rloo': Arm('rloo', '', OWN_SAMPLES),
  # The second baseline of LUFFY.
  'grpo_sft': Arm('grpo_sft', '', EXPERT_AND_SAMPLES),
  'luffy': Arm('luffy', 'Table 1', EXPERT_AND_SAMPLES),
  # From imitation to reward: µ falls to its valley over the whole stage, not
  # over the published 200 steps.
  'chord_mu': Arm(
    'chord_mu',
    'Table 1',
    (*EXPERT_AND_SAMPLES, f'loss.mu_decay_steps={STEPS}'),
  ),
  # Constant µ; tokens that are certain or absurd are left out.
  'chord_phi': Arm('chord_phi', 'Table 1', EXPERT_AND_SAMPLES),
  'gft': Arm('gft', 'Tables 1 and 2'),
  # No teachers: groups of 1 + 7. The paper does not say how it fills the places
  # of the teachers.
  'gft_no_mix': Arm('gft', 'Table 1', EXPERT_AND_SAMPLES),
  # Without dynamic coefficients.
  'gft_no_dcr': Arm('gft_no_dcr', 'Table 2, Figure 3'),
  # Without group advantages: rectified imitation.
  'gft_no_gal': Arm('gft_no_gal', 'Table 2, Figure 3', DEMONSTRATIONS),
}


def recipe(name: str) -> Config:
  """The recipe of a row of ARMS."""
  objective, _, overrides = ARMS[name]
  return config(name, objective, overrides)
