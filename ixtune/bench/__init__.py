"""Benchmark a training step: a small twin of the 7B against plain Trainer + PEFT, and the 7B's own shapes on a GPU."""
