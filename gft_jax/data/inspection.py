"""What a dataset holds in tokens, and what the limits of a config leave of it."""

import dataclasses
from typing import NamedTuple

import numpy as np
import transformers
from jaxtyping import Int

from gft_jax.config import Config
from gft_jax.data import builders, pipeline

# Limits that nothing exceeds, to measure before anything is dropped.
UNLIMITED = 1 << 30


class Lengths(NamedTuple):
  """Tokens a text, over all texts of a role; percentiles are of real texts."""

  count: int
  mean: float
  p50: int
  p95: int
  max: int


def source_of(config: Config, split: str) -> builders.Source:
  """The rows of a split before any limit, and how its file was read.

  Raises:
    ConfigError: the data cannot be used, however many rows are dropped.
  """
  settings = dataclasses.replace(config.data, max_dropped=1.0)
  return builders.source(settings, split, config.seed)


def token_lengths(
  config: Config, tokenizer: transformers.PreTrainedTokenizerBase, split: str
) -> dict[str, Lengths]:
  """Lengths of every row that can be read, whatever the limits.

  Args:
    config: of the data; its lengths and max_dropped are not applied, and all
      teachers count.
    tokenizer: with an EOS.
    split: see `builders.source`.

  Returns:
    'prompt', 'expert', 'teacher' -> lengths; a role without a text is absent.

  Raises:
    ConfigError: the data cannot be used.
  """
  settings = dataclasses.replace(
    config.data,
    max_prompt=UNLIMITED,
    max_response=UNLIMITED,
    max_dropped=1.0,
  )
  rows = source_of(config, split).rows
  most = max(len(row['teacher']) for row in rows)
  group = dataclasses.replace(config.group, teachers=most)
  found = pipeline.load(settings, group, tokenizer, split, config.seed)
  return {
    role: lengths_of(tokens)
    for role, tokens in found.statistics.tokens.items()
    if tokens.size
  }


def dropped_rows(
  config: Config, tokenizer: transformers.PreTrainedTokenizerBase, split: str
) -> dict[str, list[int]]:
  """Reason -> numbers of the rows that are bad or that the limits drop.

  Unlike `pipeline.load` it does not refuse a share above data.max_dropped.

  Raises:
    ConfigError: the data cannot be used, or no row is left.
  """
  settings = dataclasses.replace(config.data, max_dropped=1.0)
  found = pipeline.load(settings, config.group, tokenizer, split, config.seed)
  return found.statistics.dropped


def lengths_of(tokens: Int[np.ndarray, ' n']) -> Lengths:
  """Describes the lengths of n texts, one at least."""
  p50, p95 = np.percentile(tokens, (50, 95), method='nearest')
  return Lengths(
    count=tokens.size,
    mean=float(tokens.mean()),
    p50=int(p50),
    p95=int(p95),
    max=int(tokens.max()),
  )
