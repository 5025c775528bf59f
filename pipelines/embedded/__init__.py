"""Synthetic corpora that are always there."""
