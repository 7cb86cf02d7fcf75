"""What a run leaves on disk, and how it survives.

Takes states, records and settings and gives checkpoints that verify,
metrics.jsonl, clocks that add up and a workdir with one owner. A file is the
old one or the new one, whenever the process is killed. Never computes what it
stores.
"""
