"""Image classifiers trained on real, synthetic and mixed data under Ray Train."""
