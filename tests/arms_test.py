"""Arms and budgets; whole comparisons are in experiments_test.py."""

import pytest

from gft_jax import arms
from gft_jax.config import ConfigError, for_stage


@pytest.mark.parametrize(
  'text, budget',
  [
    ('prompts', ('prompts', 0)),
    ('tokens=1000', ('tokens', 1000)),
    ('seconds=0.5', ('seconds', 0.5)),
  ],
)
def test_budgets(text, budget):
  assert arms.parse_budget(text) == budget


@pytest.mark.parametrize(
  'text', ['', 'token=3', 'tokens', 'tokens=0.5', 'seconds=inf', 'prompts=3']
)
def test_what_is_not_a_budget_is_one_line(text):
  with pytest.raises(
    ConfigError, match='is not prompts, tokens=N or seconds=S'
  ):
    arms.parse_budget(text)


def test_arms_share_a_base_and_have_a_budget():
  shared, (gft, sft, mix) = arms.read_arms(
    ['embedded/gft', 'embedded/sft', 'embedded/sft_mix'], []
  )
  assert [stage.name for stage in shared.stages] == ['base']

  def rows(arm):
    limited = arms.limited(shared, arm, arms.ArmBudget('prompts'))
    return for_stage(shared, limited).data.batch_size

  # The paper's convention: ten times the prompts of a group method.
  assert (rows(gft), rows(sft), rows(mix)) == (16, 160, 40)
  limited = arms.limited(shared, sft, arms.ArmBudget('tokens', 1000))
  assert (limited.tokens, limited.steps) == (1000, arms.UNLIMITED)
  limited = arms.limited(shared, sft, arms.ArmBudget('seconds', 2.5))
  assert (limited.seconds, limited.steps) == (2.5, arms.UNLIMITED)


def test_an_arm_runs_alone_from_the_base_policy():
  shared, (gft,) = arms.read_arms(['embedded/gft'], [])
  config = arms.arm_config(shared, gft, 'folder', 3)
  (stage,) = config.stages
  assert (stage.name, stage.start) == ('gft', '')
  assert (config.model.path, config.seed) == ('folder', 3)
  assert config.eval.base == '' and not config.eval.before
