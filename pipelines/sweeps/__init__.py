"""The codebook sweep: many tokenizers that differ in their quantizer, on Ray Tune."""
