"""Training of the mask tokenizer."""
