"""WebDataset shards of skills: the manifest, the writer and the reader."""
