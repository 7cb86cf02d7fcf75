"""Table 5: how many of eight answers are demonstrations."""

import numpy as np

from figures.results import Results, accuracy_table
from figures.verdicts import Claim, Item

# Arm -> demonstrations : samples; one demonstration is the expert's.
ARMS = {
  'group_8_0': '8:0',
  'group_6_2': '6:2',
  'gft': '4:4',
  'group_2_6': '2:6',
  'group_0_8': '0:8',
}
PAPER = dict(zip(ARMS, '24.84 43.60 43.13 45.59 30.84'.split()))


def item(results: Results) -> Item:
  mixed = np.mean(
    [results.accuracy(arm) for arm in ('group_6_2', 'gft', 'group_2_6')], axis=0
  )

  def teachers(arm):
    # Of the last tenth of the steps: one batch has few answers.
    _, values = results.curve(arm, 'train/logp_teacher')
    return values[:, -max(values.shape[1] // 10, 1) :].mean(axis=1)

  return Item(
    title='Table 5: demonstrations and samples in a group of eight',
    paper='Average of Minerva, Olympiad and SAT Math: the last column.',
    table=accuracy_table(
      results,
      ARMS | {'sft_mix': 'SFT(mix), imitation'},
      more={'teachers, log p a token': teachers},
      paper={'average': PAPER},
    ),
    claims=[
      Claim('mixed groups above 8:0', mixed - results.accuracy('group_8_0')),
      Claim('mixed groups above 0:8', mixed - results.accuracy('group_0_8')),
      *(
        Claim(
          f'2:6 above {ARMS[other]}',
          results.accuracy('group_2_6') - results.accuracy(other),
        )
        for other in ('gft', 'group_6_2')
      ),
    ],
    note=(
      'Why 8:0 fails, as far as it was measured: nine of ten teachers’ answers'
      ' are right, so a wrong one lies far below its group and is pushed away'
      ' harder than the right ones are drawn. It shares its words with them,'
      ' and under 8:0 the mean log p of the teachers’ answers falls in every'
      ' seed (the next to last column; −0.15 a token before training, then −1.8,'
      ' −0.5 and −1.2). How much of that is the right ones’ was not recorded;'
      ' the expert’s, always right, stay at −0.8. Where such answers are'
      ' imitated, SFT(mix), or two of eight are the policy’s own, it does not'
      ' fall. That the pushing away is the cause was not shown by a run without'
      ' it.'
    ),
  )
