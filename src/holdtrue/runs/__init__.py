"""A run: a directory of checkpoints of one training, saved, pruned and resumed."""
