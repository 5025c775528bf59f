"""Rewards of reinforcement learning: pure functions of what a model said and what was true. No torch here."""
