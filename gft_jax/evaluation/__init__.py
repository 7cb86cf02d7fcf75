"""What a policy can do: held-out splits, public benchmarks, kept answers.

Takes parameters and an engine and gives numbers with 95 % intervals over
problems, and answers that can be graded again without the model. Interrupted
evaluations go on where they stopped. Never trains.
"""
