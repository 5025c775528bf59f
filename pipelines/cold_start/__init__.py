"""Thoughts for chats, before reinforcement learning: ``jobs/cold_start.py``."""
