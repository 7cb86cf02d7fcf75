"""Rows of the embedded task, made up, and batches side by side."""

import dataclasses

import numpy as np

from gft_jax.config import GroupConfig

GROUP = GroupConfig(experts=1, teachers=2, samples=1)


def rows(count):
  return [
    {'prompt': f'{i}+1:', 'answer': str(i + 1), 'expert': f'p{i}n1#{i + 1}'}
    for i in range(count)
  ]


def same(one, other):
  for field in dataclasses.fields(one):
    a, b = getattr(one, field.name), getattr(other, field.name)
    if isinstance(a, np.ndarray):
      np.testing.assert_array_equal(a, b, field.name)
    else:
      assert a == b, field.name
  return True
