"""What a recipe may say of the classifiers that `mimeo train` trains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from engine.spec.fields import Count, Number, Spec, _integral, _number

ArmKind = Literal[
    "real", "replacement", "augmentation", "few_shot", "few_shot_augmentation", "duplicated", "reconstructed", "curve"
]
Rate = Annotated[Number, Field(ge=0, lt=1)]
Length = Annotated[Number, Field(ge=0)]
SYNTHETIC_KINDS = ("replacement", "augmentation", "few_shot_augmentation")
STEPS = 300
# What does not change a trained classifier: which others are trained, how often it is kept, how wide it runs.
NOT_INPUTS = frozenset(
    ("arms", "multiples", "shots", "curve", "synthetic", "seeds", "reference", "checkpoint_every", "spread", "loaders")
)


class TrainSpec(Spec):
    """`mimeo train`: one classifier an arm and seed, the same number of optimiser steps for all.

    `epochs` count passes over the real training split, whatever the arm draws; `warmup` and `milestones` are in the
    unit that sets the length, epochs or steps.
    """

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")] = "cnn"
    width: Count = 16
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    size: Annotated[int, BeforeValidator(_integral), Field(ge=8, le=4096)] | None = None

    arms: Annotated[tuple[ArmKind, ...], Field(min_length=1)] = ("real", "replacement", "augmentation")
    multiples: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    shots: tuple[Count, ...] = ()
    curve: tuple[Count, ...] = ()
    synthetic: tuple[str, ...] = ()
    reference: str = "real"
    seeds: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=1000)] = 3

    share: float | Literal["proportional"] = "proportional"
    class_balanced: bool = False
    batch: Annotated[int, BeforeValidator(_integral), Field(ge=2, le=65536)] = 64

    steps: Count | None = None
    epochs: Annotated[Number, Field(gt=0)] | None = None
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: Annotated[Number, Field(gt=0)] = 3e-3
    momentum: Rate = 0.9
    weight_decay: Length = 0.05
    clip_norm: Annotated[Number, Field(gt=0)] | None = None
    schedule: Literal["constant", "cosine", "one_cycle", "milestones"] = "one_cycle"
    warmup: Length = 0.0
    milestones: tuple[Length, ...] = ()
    milestone_factor: Annotated[Number, Field(gt=0, le=1)] = 0.2
    label_smoothing: Rate = 0.0
    ema: Rate = 0.0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    sync_batch_norm: bool = False

    crop: Literal["none", "resized", "padded"] = "none"
    crop_scale: tuple[Number, Number] = (0.08, 1.0)
    crop_pct: Annotated[Number, Field(gt=0, le=1)] = 1.0
    flip: bool = False
    affine: bool = False
    color_jitter: Annotated[Number, Field(ge=0, le=1)] = 0.0
    rand_augment: Annotated[int, BeforeValidator(_integral), Field(ge=0, le=30)] = 0
    rand_augment_ops: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=10)] = 2
    mixup: Length = 0.0
    cutmix: Length = 0.0

    validate_every: Count | None = None
    select: Literal["last", "best"] | None = None
    checkpoint_every: Count = 200
    spread: Literal["batch", "jobs"] = "batch"
    loaders: Annotated[int, BeforeValidator(_integral), Field(ge=0, le=256)] = 0

    @field_validator("share", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        if value == "proportional":
            return value
        value = _number(value)
        if not 0 < value < 1:
            raise ValueError("must be proportional, or the share of synthetic images in a batch, above 0 and below 1")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrainSpec:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are two names of one length: give one of them")
        if any("few_shot" in kind for kind in self.arms) and not self.shots:
            raise ValueError("arms with few_shot need shots: real images a class, such as [1, 5, 16]")
        if "curve" in self.arms and not self.curve:
            raise ValueError("arm curve needs curve: sizes of the real subsets, such as [100, 200, 400]")
        if self.schedule == "milestones" and not self.milestones:
            raise ValueError("schedule milestones needs milestones")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError("crop_scale must be two shares of the area, 0 < low <= high <= 1")
        if self.weights is not None and not self.weights.endswith(".safetensors"):
            raise ValueError("weights must be a .safetensors file")
        return self

    def total_steps(self, images: int) -> int:
        """Optimiser steps of every arm, for `images` real training images."""
        return self.steps or (STEPS if self.epochs is None else -(-round(self.epochs * images) // self.batch))

    def in_steps(self, length: float, images: int) -> int:
        """A length in the unit of the recipe (epochs or steps), in steps."""
        return round(length if self.epochs is None else length * images / self.batch)

    @property
    def needs_synthetic(self) -> bool:
        """Whether an arm draws synthetic images."""
        return any(kind in SYNTHETIC_KINDS for kind in self.arms)
