"""Convert raw files to prepared sets; never imports torch."""
