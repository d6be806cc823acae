"""Text: the chat template and the tokenizer."""
