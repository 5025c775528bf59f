"""From mask words and annotations to chats: text only, no images are opened and no networks run."""
