"""Plots of numbers and pictures of masks."""
