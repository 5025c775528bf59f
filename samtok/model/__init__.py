"""The mask tokenizer, built from the modules of the ``sam2`` package."""
