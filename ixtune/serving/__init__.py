"""Serve a base and its adapters over HTTP, in OpenAI's form, and a page to try them."""
