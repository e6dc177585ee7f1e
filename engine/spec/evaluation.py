"""What a recipe may ask of finished sets and classifiers: other test sets, corruptions, the gap between real and synthetic."""

from __future__ import annotations

from engine.spec.fields import Spec


class EvaluateSpec(Spec):
    """`mimeo evaluate`: classifiers on other labelled sets, and how far synthetic images are from real ones."""
