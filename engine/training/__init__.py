"""Everything that trains under Ray Train: the closed-set generator and the classifiers."""
