"""Writing thoughts for chats: `jobs/cold_start.py`."""
