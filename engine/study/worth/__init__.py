"""What a synthetic set is worth beside the controls that it must beat, over several generator seeds."""
