"""Run folders as a run writes them, without running anything."""

import json

import numpy as np

from gft_jax.config import Config, Stage, to_dict

CHAIN = (
  Stage('warm', '', 'sft', 6),
  Stage('group', 'warm', 'gft', 6, ('loss.tau=0.5',)),
)


def evaluation(stage, step, value):
  """The record of an evaluation; every number follows from `value`."""
  return {
    'stage': stage,
    'step': step,
    'eval/test/avg@4': value,
    'eval/test/avg@4_low': value - 0.0311,
    'eval/test/avg@4_high': value + 0.0322,
    'eval/test/pass@4': value + 0.1133,
    'eval/test/pass@4_low': value + 0.0744,
    'eval/test/pass@4_high': value + 0.1455,
    'eval/kl_to_base': value / 7,
    'eval/entropy': value / 3,
    'time/evaluate': 2.0,
  }


def training(stage, step, **values):
  """The record of a step of a stage of CHAIN."""
  numbers = {
    'train/grad_norm': 0.5 + step,
    'train/entropy': 1 / step,
    'time/update': 0.25,
  }
  rewards = {
    'train/reward_expert': 1.0,
    'train/reward_self': step / 10,
    'time/sample': 0.125,
  }
  extra = rewards if stage == 'group' else {}
  return {'stage': stage, 'step': step} | numbers | extra | values


def write_run(folder, records, stages=CHAIN):
  """A folder with the settings and the records of a run."""
  folder.mkdir(exist_ok=True)
  settings = to_dict(Config(stages=stages))
  (folder / 'config.json').write_text(json.dumps(settings))
  lines = [json.dumps(record) + '\n' for record in records]
  (folder / 'metrics.jsonl').write_text(''.join(lines))
  return folder


def full_run(folder):
  """Both stages of CHAIN with evaluations and coefficients."""
  records = []
  for stage, value in (('warm', 0.4321), ('group', 0.7654)):
    records += [training(stage, step) for step in range(1, 4)]
    records += [evaluation(stage, 3, value - 0.2)]
    records += [training(stage, step) for step in range(4, 7)]
    records += [evaluation(stage, 6, value)]
  write_run(folder, records)
  coefficients = folder / 'report/coefficients'
  coefficients.mkdir(parents=True)
  weights = np.array([1.0, 1.2, 50.0, 1e6], np.float32)
  for stage in ('warm', 'group'):
    np.savez(
      coefficients / f'{stage}.npz',
      before=weights,
      after=np.minimum(weights, 1),
    )
  return folder


def record(step, **values):
  """The record of a step, of names with __ in the place of their /."""
  named = {name.replace('__', '/'): value for name, value in values.items()}
  return {'stage': 'gft', 'step': step} | named
