"""One run of a recipe: its stages, in a run of its own and in the trials of studies alike."""
