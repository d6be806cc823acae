"""HTML pages that need no other file: templates, charts, style and scripts for preview, report and server."""
