"""The whole method on a laptop: SFT, GFT, GRPO and their chains from one base.

Paper item: Figures 1b, 4 and 5 in small. Command:
  python experiments/train.py --config experiments/configs/quickstart.py \
    --workdir runs/quickstart
Hardware: 2 CPU cores, at most 6 minutes. Measured numbers are in README.md; the
recipe itself is gft_jax/recipes/quickstart.py, also found as
`--config quickstart`.
"""

from gft_jax.recipes.quickstart import claims, get_config

__all__ = ['claims', 'get_config']
