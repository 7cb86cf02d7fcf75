r"""RLHF after GFT: GRPO on what a reward model says, held to its start by KL.

Paper item: Figure 4, GFT before RL, with a learned reward. Hardware: 2 CPU cores,
3 minutes after the quickstart, whose answers the reward model learns from.
Command:

  python experiments/evaluate.py --workdir runs/quickstart --stage gft \
    --set eval.splits=train eval.prompts=10000 eval.temperature=1 \
    eval.kl_prompts=0 eval.batch_size=500
  python experiments/export.py --workdir runs/quickstart --stage gft \
    --out runs/gft
  python experiments/train_reward_model.py --model runs/gft \
    --pairs runs/quickstart/evaluation-gft/generations/train.jsonl \
    --workdir runs/reward_model --epochs 4 --set data.max_prompt=16 \
    data.max_response=52 data.batch_size=64 optimizer.learning_rate=1e-3
  python experiments/train.py --config experiments/configs/rlhf.py \
    --workdir runs/rlhf

Evaluations count right answers: they show what optimising a learned reward is
worth, and where it stops being worth anything.
"""

import dataclasses

from gft_jax.config import (
  CheckpointConfig,
  Config,
  LossConfig,
  ModelConfig,
  OptimizerConfig,
  RewardConfig,
  Stage,
)
from gft_jax.recipes import embedded


def get_config() -> Config:
  return Config(
    model=ModelConfig(path='runs/gft'),
    data=embedded.DATA,
    optimizer=OptimizerConfig(learning_rate=1e-4),
    checkpoint=CheckpointConfig(every=15),
    reward=RewardConfig(function='model', model='runs/reward_model/model'),
    loss=LossConfig(kl_weight=2.0),
    eval=dataclasses.replace(embedded.EVALUATION, reward='arithmetic', base=''),
    stages=(Stage('rlhf', '', 'grpo', 45, embedded.OWN_SAMPLES),),
  )
