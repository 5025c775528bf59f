"""Readers: from a dataset's published files to image rows."""
