"""Containers: read entries from JSON, tables, Parquet, tar shards, and image folders."""
