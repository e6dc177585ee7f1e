"""Deliberate generation: the classifier so far decides what is drawn next (after arXiv 2502.15588)."""
