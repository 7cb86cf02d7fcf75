"""A dataset of the Hugging Face hub as a file in the cache.

It is named hub:OWNER/NAME[:CONFIG[:SPLIT]], comes through the library
`datasets`, which is optional, and is then read as any parquet file. CONFIG may be
empty; SPLIT is train where none is named. To fetch it anew, remove the file.

| dataset | data.path |
|---|---|
| GFT's own, with 8 teachers | hub:OmniAI-ZJU/NuminaMath-Cot-Distillation-100K |
| NuminaMath-CoT | hub:AI-MO/NuminaMath-CoT |
| GSM8K | hub:openai/gsm8k:main |
| MATH, a config per subject | hub:EleutherAI/hendrycks_math:algebra |

The columns that their publishers or, for the first, the official code name need
no map. data.eval_path may be a split for tests, as in hub:openai/gsm8k:main:test.
"""

import os
import pathlib
import re

from gft_jax.config import ConfigError, require
from gft_jax.data import cache as cached
from gft_jax.huggingface.hub import check_home

PREFIX = 'hub:'


def fetched(path: str, cache: pathlib.Path) -> pathlib.Path:
  """The parquet file of a dataset, fetched on first use.

  Args:
    path: hub:OWNER/NAME[:CONFIG[:SPLIT]].
    cache: the file is put into its folder `hub`.

  Raises:
    ConfigError: another spelling, no library, no connection, no such dataset.
  """
  match = re.fullmatch(
    r'hub:([\w.-]+/[\w.-]+)(?::([\w.-]*))?(?::([\w.-]+))?', path
  )
  if match is None:
    raise ConfigError(
      f'data.path={path!r} is not spelled hub:OWNER/NAME[:CONFIG[:SPLIT]]'
    )
  name, config, split = match.groups()
  split = split or 'train'
  parts = (*name.split('/'), config or 'default', split)
  file = cache / 'hub' / f'{"--".join(parts)}.parquet'
  if cached.exists(file):
    return file
  try:
    import datasets
  except ModuleNotFoundError:
    raise ConfigError(
      f'{path} needs the library datasets: pip install datasets; or name a file'
    ) from None
  require(
    int(datasets.__version__.split('.')[0]) >= 4,
    f'datasets {datasets.__version__} runs scripts of a repository; 4 does not:'
    ' pip install "datasets>=4"',
  )
  check_home(path)
  cached.check_writable(cache)
  try:
    found = datasets.load_dataset(name, config or None, split=split)
  except (OSError, ValueError, RuntimeError) as error:
    reason = str(error).partition('\n')[0]
    raise ConfigError(f'{path} cannot be fetched: {reason}') from error
  cached.writable(file.parent, cache)
  whole = file.with_suffix(f'.{os.getpid()}')
  found.to_parquet(whole)
  whole.rename(file)
  return file
