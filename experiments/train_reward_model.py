"""Trains a reward model from pairs of answers (Bradley-Terry).

  python experiments/train_reward_model.py --model FOLDER --pairs FILE.jsonl \\
    --workdir runs/reward_model --epochs 2 --set optimizer.learning_rate=1e-5

The backbone starts as the policy in --model, a Hugging Face folder of a causal
language model. A row of --pairs has prompt, chosen and rejected, as texts or as
turns of one question and one answer; or the file holds answers that
experiments/evaluate.py has kept, and better ones are paired with worse ones.
WORKDIR/model is a folder for reward.model, and for transformers (sequence
classification with one label). The same command continues an interrupted
training.
"""

import sys

import command

from gft_jax.config import Config, ConfigError, overridden, override


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  parser.add_argument('--model', required=True, help='a Hugging Face folder')
  parser.add_argument('--pairs', required=True, help='JSONL or parquet')
  parser.add_argument('--workdir', required=True, help='folder to write')
  parser.add_argument('--epochs', type=int, default=1)
  command.add_set(parser, 'settings of data, optimizer, checkpoint and others')
  options = parser.parse_args(arguments)

  def work():
    from gft_jax import preferences

    command.check_writable('--workdir', options.workdir)
    if options.epochs < 1:
      raise ConfigError(f'--epochs {options.epochs} is less than 1')
    config = override(Config(), f'model.path={options.model}')
    config = overridden(config, options.set)
    pairs = preferences.read_pairs(options.pairs)
    metrics = preferences.train_reward_model(
      config, pairs, options.workdir, options.epochs
    )
    for name, value in metrics.items():
      print(f'{name}: {value:.4g}')
    print(f'{options.workdir}/model')

  return command.run(work)


if __name__ == '__main__':
  sys.exit(main())
