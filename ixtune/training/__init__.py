"""Training: batches, TRL's trainer on packs, checkpoints, resume, monitoring, several processes."""
