"""What a recipe may ask of many runs: arms of an ablation, a ratio search, an equivalence study, deliberate
generation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from engine.spec.fields import Count, Fraction, Name, Number, Spec, _integral

Repeats = Annotated[int, BeforeValidator(_integral), Field(ge=1, le=1000)]
Ratio = Annotated[Number, Field(ge=0, le=1000)]
Effect = Annotated[
    Number, Field(gt=0, lt=1)
]  # a difference in accuracy that one cares about, stated before it is looked for


ARMS: dict[str, dict[str, Any]] = {
    "base": {"match": None},
    "lora": {"match.mmd": "none"},
    "residual": {"match.mmd": "residual"},
    "residual_per_class": {"match.mmd": "residual_per_class"},
    "kernel_latent": {"match.mmd": "kernel_latent"},
    "kernel_feature": {"match.mmd": "kernel_feature"},
}


# What `mimeo search` sets itself, and what would change the real images' codec from trial to trial.
FIXED = (
    "generate.count",
    "generate.shard_size",
    "generate.format",
    "generate.quality",
    "generate.gate.max_quarantined",
)
RUNGS_FROM = 4  # classifiers a setting


class AblationSpec(Spec):
    """`mimeo study ablation`: arms, each the recipe with some settings changed, over several generator seeds,
    paired."""

    seeds: Annotated[int, BeforeValidator(_integral), Field(ge=2, le=1000)] = 5
    reference: Name = "lora"
    arms: dict[Name, dict[str, Any]] = ARMS
    effect: Effect = 0.01

    @model_validator(mode="after")
    def _reference_is_an_arm(self) -> AblationSpec:
        if self.reference not in self.arms:
            raise ValueError(f"reference {self.reference} is none of the arms {', '.join(self.arms)}")
        return self


class WorthSpec(Spec):
    """`mimeo study worth`: real, controls, synthetic and mixed over several generator seeds, with the copy share beside
    each ratio."""

    seeds: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=1000)] = 5
    effect: Effect = 0.01


class SearchSpec(Spec):
    """`mimeo search`: which ratio of synthetic to real images is best, judged on the validation split alone.

    `ratios` are synthetic images a real one, 0 always among them; `space` holds further settings of the drawing, each
    with the values to try.
    """

    ratios: Annotated[tuple[Ratio, ...], Field(min_length=1)] = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
    space: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    method: Literal["grid", "optuna", "asha"] = "grid"
    trials: Count | None = None
    generator_seeds: Repeats = 1
    judge_seeds: Repeats = 5
    effect: Effect = 0.01

    @model_validator(mode="after")
    def _can_be_searched(self) -> SearchSpec:
        if max(self.ratios) == 0:
            raise ValueError("ratios hold nothing but 0: add one above it")
        for key, values in self.space.items():
            if not all(isinstance(value, str | int | float | None) for value in values):
                raise ValueError(f"space: the values of {key} must be numbers or words")
            if key in FIXED:
                raise ValueError(f"space cannot hold {key}: it decides what all trials share")
            if not key.startswith("generate.") and key != "model.lora_scale":
                raise ValueError(f"space cannot hold {key}: use keys under generate. and model.lora_scale")
        if self.method == "grid" and self.trials is not None:
            raise ValueError("method grid tries every setting: leave trials out, or use optuna or asha")
        if self.method == "asha" and self.generator_seeds * self.judge_seeds < RUNGS_FROM:
            what = f"method asha needs generator_seeds x judge_seeds of {RUNGS_FROM} or more to stop bad settings early"
            raise ValueError(what)
        return self


class EquivalenceSpec(Spec):
    """`mimeo equivalence`: how many synthetic images are worth n real ones (arXiv 2508.09550).

    `bases`: sizes of the real sets held; `multiples`: synthetic images a base image; `real`: sizes of the real curve,
    the bases among them. `synthetic` plants what stands for synthetic images in a check of the study itself.
    """

    bases: Annotated[tuple[Count, ...], Field(min_length=1)] = (50, 100, 200, 400)
    multiples: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 5, 10, 20)
    real: tuple[Count, ...] = ()
    generator_seeds: Annotated[int, BeforeValidator(_integral), Field(ge=2, le=1000)] = 3
    judge_seeds: Repeats = 5
    resamples: Annotated[int, BeforeValidator(_integral), Field(ge=100, le=100_000)] = 1000
    synthetic: Literal["generator", "real", "random_labels"] = "generator"


class DeliberateSpec(Spec):
    """`mimeo study deliberate`: rounds in which the classifier so far decides what is drawn next (after arXiv
    2502.15588).

    `share` of the training images are a round's anchors; the harder half of them is drawn with `hard_guidance`. An
    image is judged by classifiers that were trained without it: `folds` parts of the training images are left out in
    turn.
    """

    rounds: Annotated[int, BeforeValidator(_integral), Field(ge=2, le=100)] = 4
    by: Annotated[tuple[Literal["entropy", "class_error"], ...], Field(min_length=1)] = ("entropy", "class_error")
    share: Annotated[Fraction, Field(gt=0)] = 0.5
    hard_guidance: Annotated[Number, Field(ge=0, le=50)] | None = None
    folds: Annotated[int, BeforeValidator(_integral), Field(ge=2, le=100)] = 5
    seeds: Annotated[int, BeforeValidator(_integral), Field(ge=2, le=1000)] = 5
    effect: Effect = 0.01
