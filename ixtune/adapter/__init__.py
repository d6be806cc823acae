"""Read, attach, save and merge adapters."""
