"""Small programs to look at runs and machines: ``python -m pipelines.tools.NAME``."""
