"""What the policy answers: sampling, texts, groups.

Takes a model by its entrances, prompts and a key, and gives responses; takes
given and sampled responses with their scores and gives a GroupBatch. Never
grades and never trains.
"""

from gft_jax.rollout.sampler import Sampling, sample_groups

__all__ = ['Sampling', 'sample_groups']
