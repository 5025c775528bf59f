"""From rewards to weights: advantages, micro-batches, learners."""
