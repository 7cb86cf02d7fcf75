"""Refuses rewards that are code and named by a run's config.json alone."""

import re
from collections.abc import Iterable

from gft_jax.config import Config, ConfigError
from gft_jax.rewards.grader import parts_of

# The reward of the form module:function that is part of the package.
IN_HOUSE = 'gft_jax.data.gym:score'


def check_rewards(
  config: Config, workdir: str | None, given: Iterable[str]
) -> None:
  """The config of a run is data, and a reward of one's own is code.

  Args:
    config: that a script will grade by.
    workdir: whose config.json it comes from, if any.
    given: the user's own assignments.

  Raises:
    ConfigError: a reward 'module:function' that the user has not named.
  """
  if not workdir:
    return
  named = {IN_HOUSE, *re.findall(r'[\w.:]+', ' '.join(given))}
  functions = {
    'reward.function': config.reward.function,
    'eval.reward': config.eval.reward,
  }
  for setting, function in functions.items():
    for part in parts_of(function) if function else ():
      if ':' in part.name and part.name not in named:
        raise ConfigError(
          f'{workdir}/config.json has the reward {part.name}, which is code; if'
          f" you trust it, name it yourself: --set {setting}='{function}'"
        )
