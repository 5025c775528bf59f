"""Marks of phrases that have masks, in Qwen's vocabulary, as the authors write captions. Loads nothing."""

OBJECT_TOKENS = OBJECT_START, OBJECT_END = "<|object_ref_start|>", "<|object_ref_end|>"
"""Around a phrase. They are content, like other text."""
