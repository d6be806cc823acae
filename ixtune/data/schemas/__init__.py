"""Schemas: turn the fields of an entry into a record."""
