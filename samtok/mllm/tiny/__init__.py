"""Tiny models of every family, built in code: for tests, smoke presets and the tour."""
