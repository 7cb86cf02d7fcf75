"""What an answer finally says, and what that is worth.

This room takes texts, of a policy or of a dataset, and gives the answer that
they state, the votes of maj@k and the rewards that are built in. It reads what
a text says in one way for all of them. It never executes a text, starts no
process and knows no model.
"""

from gft_jax.answers.reading import (
  MARK,
  MAX_CHARACTERS,
  Answer,
  after_mark,
  final,
  in_tag,
  last_boxed,
  read,
)
from gft_jax.answers.rewards import (
  AnswerError,
  GoldError,
  Reward,
  arithmetic,
  built_in,
  choice,
  exact,
  extract,
  formatted,
  length,
  mathematics,
  numeric,
)

__all__ = [
  'MARK',
  'MAX_CHARACTERS',
  'Answer',
  'AnswerError',
  'GoldError',
  'Reward',
  'after_mark',
  'arithmetic',
  'built_in',
  'choice',
  'exact',
  'extract',
  'final',
  'formatted',
  'in_tag',
  'last_boxed',
  'length',
  'mathematics',
  'numeric',
  'read',
]
