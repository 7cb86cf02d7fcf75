"""The quickstart: equal answers a step, and claims that may fail."""

import pytest

from gft_jax.config import for_stage
from gft_jax.recipes import quickstart

CONFIG = quickstart.get_config()

# What a run has found in which all three claims hold.
FOUND = {
  'sft': {'eval/kl_to_base': 0.31, 'eval/test/avg@4': 0.5},
  'gft': {'eval/kl_to_base': 0.1, 'eval/test/avg@4': 0.6},
  'grpo': {'eval/kl_to_base': 0.2, 'eval/test/avg@4': 0.7},
  'sft_grpo': {'eval/kl_to_base': 0.4, 'eval/test/avg@4': 0.65},
}


def test_claims_say_both_numbers_and_hold():
  assert quickstart.claims(FOUND) == {
    'KL(SFT) > 3 KL(GFT): 0.310 > 3 x 0.100': True,
    'accuracy GFT > SFT: 0.600 > 0.500': True,
    'accuracy SFT -> GRPO < GRPO: 0.650 < 0.700': True,
  }


@pytest.mark.parametrize(
  'stage, name, value, expected',
  [
    ('sft', 'kl_to_base', 0.29, [False, True, True]),
    ('gft', 'kl_to_base', 0.11, [False, True, True]),
    ('gft', 'test/avg@4', 0.49, [True, False, True]),
    ('sft_grpo', 'test/avg@4', 0.71, [True, True, False]),
    # Equal is neither above nor below.
    ('gft', 'test/avg@4', 0.5, [True, False, True]),
    ('grpo', 'test/avg@4', 0.65, [True, True, False]),
    # The drift of GRPO is no claim, nor is the accuracy of SFT -> GRPO beside
    # that of GFT.
    ('grpo', 'kl_to_base', 9.0, [True, True, True]),
    ('sft_grpo', 'test/avg@4', 0.1, [True, True, True]),
  ],
)
def test_a_claim_fails_by_its_own_numbers_alone(stage, name, value, expected):
  changed = FOUND[stage] | {f'eval/{name}': value}
  assert [*quickstart.claims(FOUND | {stage: changed}).values()] == expected


def test_every_stage_that_a_claim_names_is_trained_and_evaluated():
  assert {*FOUND} <= {stage.name for stage in CONFIG.stages}
  assert CONFIG.eval.base == 'base' and 'test' in CONFIG.eval.splits
  assert CONFIG.eval.samples == 4  # avg@4


def test_methods_see_equal_answers_a_step_from_one_base():
  base, *methods = CONFIG.stages
  assert (base.name, base.start, base.objective) == ('base', '', 'sft')
  for stage in methods:
    settings = for_stage(CONFIG, stage)
    assert settings.data.batch_size * settings.group.size == 128, stage.name
    assert stage.steps == quickstart.STEPS
  groups = {s.name: for_stage(CONFIG, s).group for s in methods}
  sizes = {k: (g.experts, g.teachers, g.samples) for k, g in groups.items()}
  assert sizes == {
    'sft': (1, 0, 0),
    **dict.fromkeys(('gft', 'sft_gft'), (1, 3, 4)),
    **dict.fromkeys(('grpo', 'sft_grpo', 'sft_gft_grpo'), (0, 0, 8)),
  }


def test_a_chain_is_named_by_the_stages_it_runs_through():
  assert {s.name: (s.start, s.objective) for s in CONFIG.stages} == {
    'base': ('', 'sft'),
    'sft': ('base', 'sft'),
    'gft': ('base', 'gft'),
    'grpo': ('base', 'grpo'),
    'sft_grpo': ('sft', 'grpo'),
    'sft_gft': ('sft', 'gft'),
    'sft_gft_grpo': ('sft_gft', 'grpo'),
  }
