"""Image files: headers, paths inside a root, decoding, and uint8 crops."""
