"""Metrics, live view, trackers, and validation, samples, and scores during training."""
