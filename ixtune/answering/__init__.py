"""Generate answers for training, evaluation and serving: prompts to ids, batches, shared prefixes."""
