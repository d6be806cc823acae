"""ixtune adapts InternLM-XComposer2-4KHD-7B to a domain on one GPU."""

__version__ = "0.1.0.dev0"
