"""The whole method on a laptop: SFT, GFT, GRPO and their chains from one base.

Paper item: Figures 1b, 4 and 5 in small. Command:
  python experiments/train.py --config quickstart --workdir runs/quickstart
Hardware: 2 CPU cores, at most 6 minutes. Measured numbers are in README.md.

A decoder of 0.2M parameters is first trained from scratch on a mixture of
styles of chain arithmetic (stage `base`, the base policy). Single-trajectory
methods then see 128 prompts per step and group methods 16 prompts x 8
answers: equal responses per step. (The paper gives them ten times the prompts,
as the recipes embedded/ARM do.)
"""

from gft_jax.config import (
  CheckpointConfig,
  Config,
  GroupConfig,
  OptimizerConfig,
  Stage,
)
from gft_jax.recipes import embedded

STEPS = 45

DEMONSTRATIONS = (*embedded.DEMONSTRATIONS, 'data.batch_size=128')


def get_config() -> Config:
  return Config(
    data=embedded.DATA,
    group=GroupConfig(experts=1, teachers=3, samples=4),
    reward=embedded.REWARD,
    optimizer=OptimizerConfig(learning_rate=1e-4),
    checkpoint=CheckpointConfig(every=15),
    eval=embedded.EVALUATION,
    stages=(
      Stage('base', '', 'sft', 900, embedded.PRETRAINING),
      Stage('sft', 'base', 'sft', STEPS, DEMONSTRATIONS),
      Stage('gft', 'base', 'gft', STEPS),
      Stage('grpo', 'base', 'grpo', STEPS, embedded.OWN_SAMPLES),
      Stage('sft_grpo', 'sft', 'grpo', STEPS, embedded.OWN_SAMPLES),
      Stage('sft_gft', 'sft', 'gft', STEPS),
      Stage('sft_gft_grpo', 'sft_gft', 'grpo', STEPS, embedded.OWN_SAMPLES),
    ),
  )


def claims(evaluations: dict[str, dict[str, float]]) -> dict[str, bool]:
  """What held in every run of a study at this scale, and whether it does here.

  Args:
    evaluations: stage -> its last evaluation, as gft_jax.train returns them.
  """
  kl = {k: v['eval/kl_to_base'] for k, v in evaluations.items()}
  right = {k: v['eval/test/avg@4'] for k, v in evaluations.items()}
  return {
    f'KL(SFT) > 3 KL(GFT): {kl["sft"]:.3f} > 3 x {kl["gft"]:.3f}': (
      kl['sft'] > 3 * kl['gft']
    ),
    f'accuracy GFT > SFT: {right["gft"]:.3f} > {right["sft"]:.3f}': (
      right['gft'] > right['sft']
    ),
    f'accuracy SFT -> GRPO < GRPO: {right["sft_grpo"]:.3f} <'
    f' {right["grpo"]:.3f}': right['sft_grpo'] < right['grpo'],
  }
