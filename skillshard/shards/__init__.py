"""Per-skill WebDataset shards: their manifest, how they are written and how they are read."""
