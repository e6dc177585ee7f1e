"""Ray for a run: start or join, resources, progress."""
