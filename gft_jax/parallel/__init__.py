"""Devices and processes: one mesh, one table of partition rules.

Takes arrays and functions of prompts and gives them their places on a mesh of
the axes data, fsdp and tensor. A group never straddles devices. Nothing here
knows a model or an objective, but for the paper's loss under pmap and
shard_map, which needs one psum.
"""

from gft_jax.parallel.mapped_loss import pmapped_gft_loss, shard_mapped_gft_loss

__all__ = ['pmapped_gft_loss', 'shard_mapped_gft_loss']
