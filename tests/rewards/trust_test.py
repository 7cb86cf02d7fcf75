"""A reward that is code must be named by the user."""

import pytest

from gft_jax.config import Config, ConfigError, override
from gft_jax.rewards.trust import IN_HOUSE, check_rewards


def test_a_reward_that_the_user_names_is_used():
  own = override(Config(), 'reward.function=own:f + 0.1 * length')
  for trusted in ('own:f', 'own:f + 0.1 * length'):
    check_rewards(own, 'run', [f'reward.function={trusted}'])
  with pytest.raises(ConfigError, match='has the reward own:f'):
    check_rewards(own, 'run', ['reward.function=own:fit'])
  # The module alone would be imported too.
  bare = override(own, 'reward.function=this:')
  with pytest.raises(ConfigError, match='has the reward this:,'):
    check_rewards(bare, 'run', [])
  check_rewards(own, None, [])  # of a config file of the user
  gym = override(own, f'reward.function={IN_HOUSE}')
  check_rewards(gym, 'run', [])
