"""Corpora of chats: what is in them, and which are drawn."""
