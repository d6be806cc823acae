"""One way to answer for training, evaluation and serving: prompts to ids, batches, shared prefixes, answers."""
