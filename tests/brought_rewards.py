"""Rewards as users bring them, reached by import path."""

import asyncio
import functools
import os
import sys

import numpy as np

from gft_jax.answers import AnswerError


def unit(prompt, answer, response, *, unit):
  """The column beside the texts."""
  return float(unit == 'm')


def by_name(response, answer):
  return float(response == answer)


def swapped(response, prompt, answer):
  return float((prompt, answer, response) == ('p', 'a', 'r'))


def other_names(p, gold, r):
  return float((p, gold, r) == ('p', 'a', 'r'))


def optional(prompt, answer, response, scale=3):
  return float(scale)


def all_columns(prompt, answer, response, **columns):
  return float(len(columns))


def by_name_with_all(response, **columns):
  return float(len(response) + columns['level'] + len(columns['prompt']))


def trl_lengths(completions, **kwargs):
  return [float(len(text)) for text in completions]


def trl_columns(prompts, completions, unit, completion_ids=None, **columns):
  assert completion_ids is None
  return [
    float(len(p + c) + len(u) + n)
    for p, c, u, n in zip(prompts, completions, unit, columns['level'])
  ]


def trl_needs_all(prompts, completions, completion_ids, trainer_state):
  return [float(completion_ids is trainer_state is None)] * len(prompts)


def trl_answer(completions, answer, **kwargs):
  return [float(c == a) for c, a in zip(completions, answer)]


def trl_chat(prompts, completions, **kwargs):
  contents = [completion[0]['content'] for completion in completions]
  assert completions[0][0]['role'] == 'assistant'
  return [float(len(c) + len(p)) for c, p in zip(contents, prompts)]


def trl_none(completions, **kwargs):
  return [None if c == 'skip' else 1.0 for c in completions]


async def trl_async(completions, **kwargs):
  await asyncio.sleep(0)
  return [2.0 for _ in completions]


def verl(data_source, solution_str, ground_truth, extra_info=None):
  return float(solution_str == ground_truth and data_source == 'gsm8k')


def verl_scores(data_source, solution_str, ground_truth, extra_info=None):
  return {'score': float(solution_str == ground_truth), 'acc': True}


async def asynchronous(prompt, answer, response):
  await asyncio.sleep(0)
  return float(len(response))


class Scorer:
  def __init__(self, scale=2):
    self.scale = scale

  def __call__(self, prompt, answer, response):
    return float(self.scale * len(response))

  def method(self, prompt, answer, response, *, level):
    return float(self.scale * level)


scorer = Scorer(5)
method = Scorer(7).method


class Configured:
  def __init__(self, scale):
    self.scale = scale


def _limited(prompt, answer, response, limit, unit='none'):
  return float(len(response) / limit + (unit == 'm'))


bound = functools.partial(_limited, limit=4, unit='bound')


def prints(prompt, answer, response):
  sys.stdout.write('{"not": "an answer"}\n')
  return 1.0


def mutates(prompt, answer, response, *, tags):
  tags.append('seen')
  return float(len(tags))


def undefined(prompt, answer, response):
  return scale * 1.0  # noqa: F821  # This is what is tested.


def deep(prompt, answer, response):
  return float(np.linalg.cholesky(np.full((2, 2), -1.0))[0, 0])


def some(prompt, answer, response):
  if response.startswith('bad'):
    raise KeyError(response)
  return 1.0


def unread(prompt, answer, response):
  raise AnswerError('no box')


def unread_or_broken(prompt, answer, response):
  if response == 'a':
    raise AnswerError('no box')
  raise KeyError(response)


def zero(prompt, answer, response):
  return 0.0


def no_text():
  return 1.0


def one_text(text):
  return 1.0


def out_of_order(prompt, completion, answer):
  return 1.0


def other_order(question, completion, reference):
  return 1.0


def dies(prompt, answer, response):
  os._exit(3)


def ids_alone(completion_ids, **kwargs):
  return [1.0 for _ in completion_ids]


def returned(prompt, answer, response):
  """Returns what the response names."""
  return VALUES[response]


def listed(completions, **kwargs):
  return VALUES[completions[0]]


VALUES = {
  'none': None,
  'text': '1.0',
  'list': [1.0],
  'vector': np.ones(2),
  'dictionary': {'score': 1.0},
  'nan': float('nan'),
  'huge': 10**400,
  'complex': 1j,
  'empty': [],
  'two': [1.0, 2.0],
  'number': 1.0,
  'list of text': ['1.0'],
  'list of nan': [float('nan')],
  'bool': True,
  'numpy': np.float32(0.5),
  'scalar': np.array(0.25),
  'int': 3,
  'array': np.array([0.5]),
  'tuple': (0.5,),
}
