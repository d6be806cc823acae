"""Data as people have them -> records."""
