"""Writes a dataset whose teacher answers any loaded model samples.

  python experiments/generate_teacher.py --model FOLDER --data FILE \\
    --answers 8 --temperature 0.7 --max-tokens 1024 --out TEACHER.jsonl
  python experiments/train.py ... --set data.path=TEACHER.jsonl

Each row of --data comes out with its prompt, answer and expert, and as teacher
the model's answers in place of any that it had. An answer that never stopped
is left out, and so is an empty one, and under --keep-correct one that is
wrong by the reward of evaluations (--set reward.function=math); a row may end up without a teacher. Rows
with a prompt above data.max_prompt, or that cannot be read, are dropped and
counted; prepare_data.py names them.

Finished batches (data.batch_size) are on disk: after an interruption the same
command continues, and the file is bit for bit that of an uninterrupted run on
the same machine. TEACHER.jsonl.settings/ beside it says under which settings:
under any others the same --out is refused.
"""

import pathlib
import sys

import command

from gft_jax.config import overridden


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  command.add_model(parser)
  add = parser.add_argument
  add('--data', required=True, help='as data.path')
  add('--out', required=True, metavar='FILE.jsonl')
  add('--answers', type=int, default=8, help='per prompt')
  add('--temperature', type=float, default=1.0, help='0: greedy')
  add('--max-tokens', type=int, default=1024)
  add('--seed', type=int, default=0)
  add('--keep-correct', action='store_true', help='leave wrong answers out')
  command.add_set(parser, 'overrides one setting; may be repeated')
  options = parser.parse_args(arguments)
  return command.run(lambda: generate(options))


def generate(options) -> None:
  from gft_jax import teacher
  from gft_jax.rewards.trust import check_rewards

  out = pathlib.Path(options.out)
  config = teacher.settings_for(
    command.model_config(options),
    options.data,
    answers=options.answers,
    max_tokens=options.max_tokens,
    temperature=options.temperature,
    seed=options.seed,
  )
  config = overridden(config, options.set)
  check_rewards(config, options.workdir, options.set)
  teacher.check_teacher(config, out, options.keep_correct)
  command.check_writable('--out', out.parent)
  policy, params = command.load_model(options, config)
  answers, dropped, left_out = teacher.write_teacher(
    config, policy, params, out, options.keep_correct
  )
  for reason, count in dropped.items():
    print(f'dropped: {count} {reason}')
  for reason, count in left_out.items():
    print(f'left out in this call: {count} {reason}')
  print(
    f'{out}: {len(answers)} rows, {sum(answers)} of'
    f' {len(answers) * config.group.samples} answers, {answers.count(0)} rows'
    ' without one'
  )


if __name__ == '__main__':
  sys.exit(main())
