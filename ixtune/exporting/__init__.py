"""Export adapters and models in the form a named consumer loads."""
