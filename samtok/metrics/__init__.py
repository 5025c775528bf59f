"""Metrics, as the official evaluators define them."""
