"""Checkpoints on disk: safetensors and torch files, tensor names and shapes, identity, verification, conversion."""
