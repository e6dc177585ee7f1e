"""What a recipe may ask of finished sets and classifiers: other test sets, corruptions, the gap between real and
synthetic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from engine.spec.fields import Count, Name, Spec, _integral
from engine.spec.sources import Source

Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "gaussian_blur",
    "motion_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "elastic",
    "pixelate",
    "jpeg",
]
CORRUPTIONS: tuple[Corruption, ...] = Corruption.__args__  # type: ignore[attr-defined]
OWN = "test"  # the name under which the run's own test split stands among the sets


class SetSpec(Spec):
    """Another labelled set: its given test set where the source has one, else all of it.

    `classes` maps its class names to the run's (absent: equal names). `restrict`: where it has some of the run's
    classes only, the classifier chooses among these, as the benchmarks of such subsets prescribe (ImageNet-A, -R).
    `border`: pixels of the stored image that are cut off each side, where its objects stand in a wider frame than the
    run's.
    """

    source: Source
    classes: dict[str, str] | None = None
    restrict: bool = True
    border: Annotated[int, BeforeValidator(_integral), Field(ge=0, le=4096)] = 0


class CorruptionsSpec(Spec):
    """The run's own test split, corrupted in the manner of arXiv 1903.12261 at severities 1 to 5."""

    kinds: Annotated[tuple[Corruption, ...], Field(min_length=1)] = CORRUPTIONS
    severities: Annotated[
        tuple[Annotated[int, BeforeValidator(_integral), Field(ge=1, le=5)], ...], Field(min_length=1)
    ] = (1, 2, 3, 4, 5)


class GapSpec(Spec):
    """How well real and synthetic images can be told apart, and how far their features overlap (after arXiv
    2508.09550)."""

    images: Annotated[int, BeforeValidator(_integral), Field(ge=10, le=100_000)] = 2000
    folds: Annotated[int, BeforeValidator(_integral), Field(ge=2, le=50)] = 5
    dimensions: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=1000)] = 5
    steps: Count = 300


class EvaluateSpec(Spec):
    """`mimeo evaluate`: classifiers on other labelled sets, and how far synthetic images are from real ones.

    `arms` and `seeds`: which judges are trained where the output holds no saved classifiers; null: those of the judge
    section.
    """

    sets: dict[Name, SetSpec] = Field(default_factory=dict)
    corruptions: CorruptionsSpec | None = None
    gap: GapSpec | None = None
    arms: Annotated[tuple[Literal["real", "synthetic", "mixed"], ...], Field(min_length=1)] | None = None
    seeds: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=1000)] | None = None

    @field_validator("sets")
    @classmethod
    def _not_own(cls, value: dict[str, SetSpec]) -> dict[str, SetSpec]:
        if OWN in value:
            raise ValueError(f"the name {OWN} is that of the run's own test split: choose another")
        return value

    @model_validator(mode="after")
    def _gap_needs_real(self) -> EvaluateSpec:
        if self.gap is not None and self.arms is not None and "real" not in self.arms:
            raise ValueError("gap is measured by a classifier trained on real images: add real to arms")
        return self
