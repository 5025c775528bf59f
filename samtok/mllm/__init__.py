"""Mask words in multimodal language models: vocabulary, families, chats, grammar."""
