"""WebDataset shards: written whole, recorded, verified, read, and indexed for other tools."""
