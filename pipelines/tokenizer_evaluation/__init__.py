"""From tokenizers to numbers: what comes back of masks that were said in words."""
