"""The paper's diagnosis of SFT (section 2) on any model and any SFT dataset.

  python experiments/diagnose.py --model FOLDER --data FILE --workdir DIR

Without --data the embedded task, without --model a policy that knows nothing
(and whose entropy before training is not measured).
On demonstrations it measures SFT's importance weight 1/p and the tokens behind
its largest values, who carries the gradient, how sparse SFT's implicit reward
1[y = y*] is, what a threshold τ would rectify, and how likely the policy finds
the end of an answer. Then it takes --steps steps of SFT, DFT and GFT from the
model (WORKDIR/run, resumable) and measures entropy and the end again; DFT and
GFT also with loss.rectify_end=false, the remedy for an end that rectification
keeps unlikely. Writes diagnosis.json, .md and .png (with --svg also .svg).
"""

import pathlib
import sys

import command

from gft_jax.config import overridden


def main(arguments: list[str] | None = None) -> int:
  parser = command.parser(__doc__)
  parser.add_argument('--model', default='', help='folder or hub id')
  parser.add_argument('--data', default='', help='JSONL or parquet file')
  parser.add_argument('--workdir', required=True, help='folder to write')
  parser.add_argument(
    '--steps', type=int, default=20, help='k of SFT, DFT and GFT'
  )
  parser.add_argument(
    '--svg', action='store_true', help='write diagnosis.svg too'
  )
  command.add_set(
    parser,
    'settings, as of train.py; eval.prompts demonstrations are looked at'
    ' and eval.samples answers a prompt sampled',
  )
  options = parser.parse_args(arguments)

  def work():
    from gft_jax import diagnosis
    from gft_jax.report import diagnosis as report

    config = diagnosis.config_of(options.model, options.data, options.steps)
    config = overridden(config, options.set)
    workdir = pathlib.Path(options.workdir)
    found, tokens = diagnosis.diagnose(config, workdir)
    print(report.write(workdir, found, tokens.logp, svg=options.svg))
    print(f'{workdir}/diagnosis.png')

  return command.run(work)


if __name__ == '__main__':
  sys.exit(main())
