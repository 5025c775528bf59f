"""Synthetic corpora: drawn scenes in the published layout of each dataset (``jobs/make_shapes.py``)."""
