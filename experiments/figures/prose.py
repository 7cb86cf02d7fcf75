"""What stands at the head of a page: the task, and how to read a verdict."""

TASK = (
  'A small decoder adds and subtracts: to `7+8-3+5:` it answers with a derivation'
  ' and `#17`. In distribution: chains of 3 to 5 numbers, as in training; longer'
  ' chains: 6 or 7; new operator: 3 to 5, with one product. It learned all of'
  ' them a little in pre-training (the base policy), in several styles. The'
  ' expert writes `p20n3#17`, rare there. GAL, group advantage learning, is the'
  ' score relative to the group; without it a method imitates: the expert alone, on'
  ' ten times the prompts, or expert and teachers, SFT(mix). DCR, dynamic coefficient rectification, bounds'
  ' the weight of unlikely tokens by 1/τ. A → B trains by A, then by B.'
)

READING = (
  '±, error bars and bands are 95 % intervals of the mean over seeds (Student’s'
  ' t); they may reach beyond 0 or 1. A verdict stands on the paired difference'
  ' over seeds: a claim of the paper reproduces, or does not, where that'
  ' interval leaves out 0; a claim of ours holds, or does not. Seeds differ in'
  ' initial weights, order and sampling; the task’s data and its held-out'
  ' prompts are the same, so the intervals do not cover other prompts. Of some'
  ' dozens of claims one or two are decided by chance.'
)
