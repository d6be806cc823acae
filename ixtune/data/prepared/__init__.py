"""Prepared sets on disk: Arrow rows, manifest, statistics, and reading several sets as one."""
