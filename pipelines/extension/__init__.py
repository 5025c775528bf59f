"""Mask words for a checkpoint of Hugging Face's."""
