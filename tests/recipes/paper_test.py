"""The recipes of the paper, value by value.

Sources: sections 1.8 and 3 of the survey of the public code, whose commits
gft_jax/recipes/paper.py names.
"""

import pytest

from gft_jax import recipes
from gft_jax.config import for_stage
from gft_jax.training import objectives

# Recipe -> objective, steps, prompts a step, (experts, teachers, samples),
# updates a step, peak learning rate, schedule, warm-up, b2, weight decay.
CONSTANT = (1e-6, 'constant', 0, 0.999, 0.01)
COSINE = (5e-5, 'cosine', 39, 0.95, 0.01)
RECIPES = {
  'gft': ('gft', 78, 128, (1, 3, 4), 4, *CONSTANT),
  'gft_no_mix': ('gft', 78, 128, (1, 0, 7), 4, *CONSTANT),
  'gft_no_dcr': ('gft_no_dcr', 78, 128, (1, 3, 4), 4, *CONSTANT),
  'gft_no_gal': ('gft_no_gal', 390, 256, (1, 0, 0), 1, *COSINE),
  'grpo': ('grpo', 78, 128, (0, 0, 8), 4, *CONSTANT),
  'sft': ('sft', 390, 256, (1, 0, 0), 1, *COSINE),
  'sft_mix': ('sft', 390, 64, (1, 3, 0), 1, *COSINE),
  'dft': ('dft', 390, 256, (1, 0, 0), 1, *COSINE),
  'asft': ('asft', 4687, 64, (1, 0, 0), 1, 2e-5, 'cosine', 0, 0.999, 0.0),
  'psft': ('psft', 1562, 64, (1, 0, 0), 8, 1e-6, 'constant', 80, 0.999, 0.1),
  'luffy': ('luffy', 78, 128, (1, 0, 7), 2, *CONSTANT),
  'chord': ('chord_phi', 78, 128, (1, 0, 7), 4, *CONSTANT),
}

# What is published of the loss itself, beside the objective's equation.
LOSSES = {
  'gft': {'tau': 0.7},
  'asft': {'kl_weight': 0.1, 'kl': 'forward'},
  'psft': {'clip_low': 0.2, 'clip_high': 0.28},
  'grpo': {'clip_low': 0.2, 'clip_high': 0.2, 'kl_weight': 0},
  'luffy': {'shaping': 0.1, 'entropy_bonus': 0.001, 'reduction': 'length_sum'},
  'chord': {'mu_peak': 0.1, 'mu_valley': 0.1},
}


def recipe(name):
  return recipes.find(f'paper/{name}').config


@pytest.mark.parametrize('name', RECIPES)
def test_a_method_has_its_published_values(name):
  config = recipe(name)
  (stage,) = config.stages
  settings = for_stage(config, stage)
  group, optimizer = settings.group, settings.optimizer
  assert RECIPES[name] == (
    stage.objective,
    stage.steps,
    settings.data.batch_size,
    (group.experts, group.teachers, group.samples),
    optimizer.mini_batches,
    optimizer.learning_rate,
    optimizer.schedule,
    optimizer.warmup_steps,
    optimizer.b2,
    optimizer.weight_decay,
  )
  assert (optimizer.b1, optimizer.epsilon, optimizer.clip_norm) == (
    0.9,
    1e-8,
    1.0,
  )
  assert settings.data.max_prompt == 1024
  assert settings.data.max_response == 2048
  assert settings.sampler.temperature == 1.0
  assert settings.loss.tau == 0.7
  assert settings.data.rows == (100_000 if stage.steps >= 390 else 10_000)
  objective = objectives.choose(stage.objective, group)
  loss = objectives.resolve(settings.loss, objective)
  for field, value in LOSSES.get(name, {}).items():
    assert getattr(loss, field) == value, field
  assert settings.eval.every == stage.steps // 6  # Figures 3, 4 and 5
  assert settings.model.path == 'Qwen/Qwen2.5-Math-1.5B'
  assert settings.model.dtype == 'bfloat16'
  assert settings.model.param_dtype == 'float32'
  assert settings.reward.function == 'math'


def test_sweeps_and_pipelines_are_gft_but_for_what_they_vary():
  thresholds = recipe('thresholds')
  taus = [for_stage(thresholds, s).loss.tau for s in thresholds.stages]
  assert sorted(taus) == [0.1, 0.3, 0.5, 0.7, 0.9]
  compositions = recipe('compositions')
  groups = [for_stage(compositions, s).group for s in compositions.stages]
  assert sorted((g.experts + g.teachers, g.samples) for g in groups) == [
    *((0, 8), (2, 6), (4, 4), (6, 2), (8, 0)),
  ]
  for config in (thresholds, compositions):
    assert {(s.objective, s.steps, s.start) for s in config.stages} == {
      ('gft', 78, '')
    }
  stages = recipe('pipelines').stages
  assert {s.steps for s in stages} == {90}
  pipelines = {s.name: (s.objective, s.start) for s in stages}
  assert pipelines == {
    'sft': ('sft', ''),
    'gft': ('gft', ''),
    'grpo': ('grpo', ''),
    'sft_grpo': ('grpo', 'sft'),
    'sft_gft': ('gft', 'sft'),
    'gft_grpo': ('grpo', 'gft'),
    'sft_gft_grpo': ('grpo', 'sft_gft'),
  }
