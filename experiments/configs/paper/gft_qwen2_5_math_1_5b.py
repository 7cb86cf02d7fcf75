r"""GFT on Qwen2.5-Math-1.5B, as the paper trains it.

Paper item: Table 1, row GFT, Qwen2.5-Math-1.5B. Command:
  python experiments/train.py \
    --config experiments/configs/paper/gft_qwen2_5_math_1_5b.py \
    --workdir runs/gft_1_5b
Hardware: 16 TPU chips (mesh fsdp=16), for which experiments/pods/compile_check.py
compiles it, with the paper's other models by `--set model.path=...`: see
experiments/pods/README.md. Not run here: no weights, data or accelerator at hand.

Values: examples/gft_trainer/run_qwen2.5-math-1.5B.sh of ZJU-OmniAI/GFT at
763384d: 128 prompts x (1 expert + 3 teachers + 4 samples), 1,024 + 2,048 tokens,
AdamW at 1e-6 constant, clip 1, weight decay 0.01, float32 master weights with
bfloat16 compute; 78 rollouts of 4 updates are its 10,000 prompts. The threshold
is the paper's best, 0.7 (Figure 6); that script has 0.1.
"""

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


def get_config() -> Config:
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
    mesh=MeshConfig(fsdp=16),
    eval=EvalConfig(
      splits=('test',), max_response=2048, batch_size=32, kl_prompts=32
    ),
    stages=(Stage('gft', '', 'gft', 78),),
  )
