"""Raw files to prepared data sets; never imports torch."""
