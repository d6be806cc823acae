"""Merge adapters into a base checkpoint, shard by shard, and prove the result."""
