"""Merge adapters into a base checkpoint, shard by shard, and verify the result."""
