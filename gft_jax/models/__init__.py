"""The decoder, and what reads it: adapters, packing, scores, log-probabilities.

Takes an Architecture, parameters and a GroupBatch and gives hidden states,
log-probabilities per token and scores per answer. A prompt is computed once
per group, in training and in sampling alike. Never forms logits, never
optimizes, and knows no family of models by its name.
"""
