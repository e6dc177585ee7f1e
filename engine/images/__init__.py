"""Real images: sources, decoding, the catalog and its quarantine."""
