"""What an answer is worth, graded in guarded processes.

Takes prompts, reference answers and texts and gives scores, with what went
wrong counted by cause. Model output is data: it is parsed under limits of time
and memory, never executed. Never imports JAX, for workers import this room.
"""
