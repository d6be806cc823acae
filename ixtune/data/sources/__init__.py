"""Sources: open data in the form people have it, and decide how to read its records."""
