"""From image rows to code shards."""
