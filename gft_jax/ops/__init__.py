"""Pure functions of arrays, in the paper's symbols.

Takes rewards, masks, hidden states and log-probabilities and gives advantages,
coefficients, losses, divergences and estimates, each with its equation and its
source. Differentiates, and runs under jit, vmap, pmap and shard_map. Never
knows a model, a setting or a device.
"""
