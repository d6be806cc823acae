"""A run: packs to batches, TRL's trainer, checkpoints, progress."""
