"""What a training step costs: a small twin of the 7B against the plain way, and the 7B's own shapes on a GPU."""
