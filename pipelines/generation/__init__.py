"""Text from finished MLLMs: settings of generation, and loading of checkpoints by URI."""
