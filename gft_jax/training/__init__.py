"""Groups in, an updated policy out: objectives, loss and the training step.

Takes a train state and a scored GroupBatch and gives the next state with
metrics. All of it is pure and unjitted; the engine compiles it. Never samples
and never writes a file.
"""
