"""Export adapters and models in the form that one consumer loads."""
