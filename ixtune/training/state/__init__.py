"""State of a run folder: checkpoints, resume, progress, and the lock."""
