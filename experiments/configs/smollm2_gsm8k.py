"""Three GFT steps on real weights and real data, on two CPU cores.

Paper item: none (the paper's smallest model has 1.5B parameters); the same
code path as its recipes. Command:
  python experiments/fetch_smollm2.py FOLDER
  python experiments/train.py --config experiments/configs/smollm2_gsm8k.py \
    --workdir runs/smollm2 --set model.path=FOLDER data.path=GSM8K.parquet
Hardware: 2 CPU cores, 24 GB. GSM8K has one solution per problem, so the
groups are "no mix": 1 expert + 3 samples. Lengths and groups are short for the
hardware; longer experts are dropped and counted, never cut.
"""

from gft_jax.config import (
  CheckpointConfig,
  Config,
  DataConfig,
  EvalConfig,
  GroupConfig,
  LossConfig,
  ModelConfig,
  OptimizerConfig,
  RewardConfig,
  SamplerConfig,
  Stage,
)


def get_config() -> Config:
  return Config(
    model=ModelConfig(remat='full'),
    data=DataConfig(
      batch_size=4,
      max_prompt=128,
      max_response=96,
      max_dropped=0.8,
      rows=512,
    ),
    group=GroupConfig(experts=1, teachers=0, samples=3),
    sampler=SamplerConfig(temperature=1.0),
    reward=RewardConfig(function='math', workers=2),
    loss=LossConfig(tau=0.7, chunk=128),
    optimizer=OptimizerConfig(learning_rate=1e-5, micro_batches=2),
    checkpoint=CheckpointConfig(every=3, keep=1),
    eval=EvalConfig(
      splits=('test',),
      prompts=8,
      samples=1,
      ks=(1,),
      max_response=48,
      kl_prompts=4,
      batch_size=8,
    ),
    stages=(Stage('gft', '', 'gft', 3),),
  )
