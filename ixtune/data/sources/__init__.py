"""Sources: open data in the user's format, and decide how to read its records."""
