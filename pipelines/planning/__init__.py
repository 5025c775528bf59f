"""Plans: a corpus is listed, by many workers where it is large, and frozen before anything is done."""
