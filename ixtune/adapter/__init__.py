"""Adapters as files: read, attach, save, merge."""
