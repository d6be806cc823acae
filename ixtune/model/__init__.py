"""Network: configuration, layers, loss, and checkpoints in the original form."""
