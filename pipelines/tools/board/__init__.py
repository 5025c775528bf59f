"""What ``pipelines.tools.compare`` is made of: finished evaluations, their numbers, tables, a page."""
