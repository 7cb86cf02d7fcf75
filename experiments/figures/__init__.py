"""Run directories in, the paper's figures and tables out: one file an item."""
