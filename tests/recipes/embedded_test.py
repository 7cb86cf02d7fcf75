"""The arms of the embedded task."""

from gft_jax.config import for_stage
from gft_jax.recipes import embedded
from gft_jax.training import objectives


def test_every_objective_has_a_recipe():
  used = {arm.objective for arm in embedded.ARMS.values()}
  assert used == set(objectives.OBJECTIVES)


def test_all_arms_share_all_but_their_last_stage():
  configs = {name: embedded.recipe(name) for name in embedded.ARMS}
  first = configs['sft']
  for name, config in configs.items():
    base, arm = config.stages
    assert (arm.name, arm.start, arm.steps) == (name, 'base', 80)
    assert base == first.stages[0]
    group = for_stage(config, arm).group
    answers = for_stage(config, arm).data.batch_size * group.size
    # Group methods 16 x 8, methods that imitate ten times the prompts.
    assert answers == (128 if group.samples else 160), name
