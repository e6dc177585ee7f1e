"""What a recipe may say of the classifiers that `mimeo train` trains."""

from __future__ import annotations

from engine.spec.fields import Spec


class TrainSpec(Spec):
    """`mimeo train`: one classifier a mode and seed, the same number of optimiser steps for all."""
