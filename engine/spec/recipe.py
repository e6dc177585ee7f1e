"""The frozen specification of a run: what a recipe may say, with ranges and defaults."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from engine.spec.classifier import TrainSpec
from engine.spec.evaluation import EvaluateSpec
from engine.spec.fields import Count, Fraction, Label, Name, Number, Seed, Spec, _integral, _number
from engine.spec.presets import LARGEST_PIXELS, fill
from engine.spec.sources import (
    DigitsSource as DigitsSource,
)
from engine.spec.sources import (
    FolderSource as FolderSource,
)
from engine.spec.sources import (
    HubSource as HubSource,
)
from engine.spec.sources import (
    MedMnistSource as MedMnistSource,
)
from engine.spec.sources import (
    MnistSource as MnistSource,
)
from engine.spec.sources import (
    ParquetSource as ParquetSource,
)
from engine.spec.sources import (
    Source as Source,
)
from engine.spec.sources import (
    UspsSource as UspsSource,
)
from engine.spec.sources import (
    WebDatasetSource as WebDatasetSource,
)
from engine.spec.studies import AblationSpec, DeliberateSpec, EquivalenceSpec, SearchSpec, WorthSpec
from engine.spec.training import MatchSpec, PretrainSpec


class ImagesSpec(Spec):
    """How real images are decoded: every one becomes an RGB square of `size` pixels."""

    size: Annotated[int, BeforeValidator(_integral), Field(ge=8, le=4096, multiple_of=8)] = 512
    fit: Literal["crop", "pad", "stretch"] = "crop"
    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = "#ffffff"
    max_pixels: Count = 50_000_000
    max_bytes: Count = 64 * 1024 * 1024
    max_bad_fraction: Fraction = 0.5


class SplitSpec(Spec):
    """Sizes of the splits, as counts (whole numbers > 1) or fractions of all good images (0 to 1); `train: rest` takes
    what is left.

    `near_duplicates: together` keeps images that look alike in one split, `allow` counts them only.
    """

    train: int | float | Literal["rest"] = "rest"
    validation: int | float = 0.0
    test: int | float = 0.2
    near_duplicates: Literal["together", "allow"] = "together"

    @field_validator("train", "validation", "test", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        if value == "rest":
            return value
        value = _number(value)
        if not math.isfinite(value) or value < 0 or (value > 1 and value != int(value)):
            raise ValueError("must be a fraction between 0 and 1, or a whole number of images")
        return int(value) if value > 1 else value


def _written(value: Any) -> Any:
    """A class that is written as a number is its name."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


ClassId = Annotated[int, BeforeValidator(_integral), Field(ge=0)]


class ModelSpec(Spec):
    """The generator: a diffusers directory or Hub id, or (checkpoint null) the closed-set one that `pretrain` makes.

    `visual_token`: something else than mimeo has trained it, or the LoRA, with image features in the place of a text
    token.
    `class_ids`: the checkpoint's numbers of classes whose names it does not know, where it is told numbers.
    """

    checkpoint: str | None = None
    revision: str | None = None
    lora: str | None = None
    lora_scale: Annotated[Number, Field(gt=0, le=10)] = 1.0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    visual_token: bool = False
    class_ids: dict[Annotated[str, BeforeValidator(_written)], ClassId] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_a_checkpoint(self) -> ModelSpec:
        if self.class_ids and self.checkpoint is None:
            raise ValueError("class_ids are for a checkpoint: a generator that is trained here knows its classes")
        return self


class CaptionSpec(Spec):
    """Where captions come from: the class name alone, image moments (digits), or a captioning model through
    transformers."""

    kind: Literal["class", "moments", "blip", "model"] = "class"
    path: str | None = None
    instruction: Annotated[str, Field(pattern=r"\S")] | None = None
    max_new_tokens: Count = 20

    @model_validator(mode="after")
    def _needs_path(self) -> CaptionSpec:
        if self.kind in ("blip", "model") and not self.path:
            raise ValueError(f"kind {self.kind} needs path: a local directory of a captioning model")
        if self.kind != "model" and self.instruction is not None:
            raise ValueError(f"kind {self.kind} takes no instruction: leave it out, or use kind model")
        return self


class FeatureSpec(Spec):
    """Which CLIP computes image features: the checkpoint's own, a transformers directory, or open_clip with local
    weights."""

    backend: Literal["checkpoint", "transformers", "open_clip"] = "checkpoint"
    path: str | None = None
    model: str | None = None
    normalise: bool = False

    @model_validator(mode="after")
    def _needs_path(self) -> FeatureSpec:
        if self.backend == "transformers" and not self.path:
            raise ValueError("backend transformers needs path: a local CLIP directory")
        if self.backend == "open_clip" and not self.path:
            raise ValueError("backend open_clip needs path: a weights file, or a folder with open_clip_config.json")
        if self.backend == "open_clip" and str(self.path).endswith(".safetensors") and not self.model:
            raise ValueError("backend open_clip needs model (such as ViT-L-14) beside a weights file")
        return self


class ConditionsSpec(Spec):
    """What is computed once for each training image: caption and CLIP image feature; class statistics beside."""

    prompt: str = "photo of {class}, {caption}"
    caption: CaptionSpec = CaptionSpec()
    features: FeatureSpec = FeatureSpec()

    @field_validator("prompt")
    @classmethod
    def _fields(cls, value: str) -> str:
        left = value.replace("{class}", "").replace("{caption}", "")
        if "{" in left or "}" in left:
            raise ValueError("may use {class} and {caption} only")
        if not value.strip():
            raise ValueError("must not be empty")
        return value


class GateSpec(Spec):
    """When a sample is drawn again, and after how many attempts it is quarantined."""

    min_std: Annotated[Number, Field(ge=0)] = 1.0
    min_clip_score: Annotated[Number, Field(ge=-1, le=1)] | None = None
    max_attempts: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=100)] = 3
    max_quarantined: Fraction = 0.01


class GenerateSpec(Spec):
    """The synthetic set: how many samples, drawn how, written how."""

    count: Count = 1000
    shard_size: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=100_000)] = 1000
    classes: Literal["proportional", "balanced"] = "proportional"
    scheduler: str = "dpmsolver++"
    num_inference_steps: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=1000)] = 20
    guidance_scale: Annotated[Number, Field(ge=0, le=50)] = 2.0
    guidance_on: Literal["both", "text", "image"] = "both"
    guidance: Literal["cfg", "auto"] = "cfg"
    negative_prompt: str = ""
    quality_suffix: str = ""
    visual_token: Literal["own", "class", "interpolation", "class_mean", "class_gaussian", "prior", "none"] = "own"
    pairing: Literal["own", "class", "none"] = "none"
    strength: Annotated[Number, Field(gt=0, le=1)] = 1.0
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    cache_interval: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=100)] = 1
    format: Literal["png", "jpg", "webp"] = "png"
    quality: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=100)] = 95
    gate: GateSpec = GateSpec()

    @model_validator(mode="after")
    def _consistent(self) -> GenerateSpec:
        if self.strength < 1 and self.pairing == "none":
            raise ValueError("strength below 1 starts from a real image: set pairing to own or class")
        if self.guidance_on == "image" and self.visual_token == "none":
            raise ValueError("guidance_on image drops the visual token, and visual_token is none: use text or both")
        if self.guidance == "auto" and (self.guidance_on != "both" or self.guidance_interval != (0.0, 1.0)):
            raise ValueError(
                "guidance auto leads away from a weaker model: it takes no guidance_on, no guidance_interval"
            )
        if self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError("guidance_interval must end after it begins, as in [0.2, 0.8]")
        if -(-self.count // self.shard_size) > 10**8:
            raise ValueError(f"count {self.count} makes more than 100,000,000 shards: raise shard_size")
        return self


class JudgeSpec(Spec):
    """The classifier that says what the data is worth: trained for the same number of steps on every arm.

    `multiples` None: 1, and the largest whole one that `generate.count` gives. `controls`: what a synthetic set must
    beat; made of real training images alone, where there are synthetic ones to compare.
    """

    arms: tuple[Literal["real", "synthetic", "mixed"], ...] = ("real", "synthetic", "mixed")
    multiples: tuple[Count, ...] | None = None
    controls: tuple[Literal["duplicated", "photocopy", "reconstructed", "augmented"], ...] = (
        "duplicated",
        "photocopy",
        "reconstructed",
        "augmented",
    )
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"] = "accuracy"
    width: Count = 16
    steps: Count = 300
    batch: Annotated[int, BeforeValidator(_integral), Field(ge=2, le=65536)] = 64
    lr: Annotated[Number, Field(gt=0)] = 3e-3
    seeds: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=1000)] = 3
    augment: Literal["none", "flip", "affine"] = "affine"
    mixing: Literal["equal", "proportional"] = "equal"
    tune: bool = False


def _batch_size(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 4096 or value != int(value):
        raise ValueError("must be a whole number from 1 to 4096, or auto")
    return int(value)


class FastSpec(Spec):
    """How the generator's arithmetic is carried out: the same mathematics, other rounding."""

    channels_last: Literal["auto", "on", "off"] = "auto"
    fuse_qkv: bool = False
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = "auto"
    compile: Literal["off", "default", "reduce-overhead"] = "off"
    decode_batch: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=4096)] | None = None


class ResourcesSpec(Spec):
    """Where and how wide it runs; never part of a run's identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    actors: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=100_000)] | None = None
    batch_size: Annotated[int | Literal["auto"], BeforeValidator(_batch_size)] = 16
    fast: FastSpec = FastSpec()
    gpus_per_actor: Annotated[Number, Field(gt=0, le=8)] = 1.0
    cpus_per_actor: Annotated[Number, Field(ge=0, le=256)] = 0.5
    threads: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=256)] = 1
    train_workers: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=10_000)] = 1
    train_workers_min: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=10_000)] | None = None
    labels: dict[Label, Label] = Field(default_factory=dict)
    wait: Annotated[Number, Field(ge=0, le=7 * 86_400)] = 0.0
    stall: Annotated[Number, Field(ge=5, le=86_400)] = 120.0
    compile_training: bool = False
    tensorboard: bool = False
    price_per_hour: Annotated[Number, Field(ge=0, le=1e9)] | None = None

    @model_validator(mode="after")
    def _at_least(self) -> ResourcesSpec:
        if self.train_workers_min is not None and self.train_workers_min > self.train_workers:
            raise ValueError(
                f"train_workers_min {self.train_workers_min} is more than train_workers {self.train_workers}"
            )
        return self


class RunSpec(Spec):
    """A whole run; its identity is the hash of everything but `resources` and what is asked of finished sets:
    classifiers, evaluations, studies."""

    version: Literal[1] = 1
    name: Name
    seed: Seed = 0
    source: Source
    images: ImagesSpec = ImagesSpec()
    split: SplitSpec = SplitSpec()
    model: ModelSpec = ModelSpec()
    pretrain: PretrainSpec = PretrainSpec()
    match: MatchSpec | None = None
    conditions: ConditionsSpec = ConditionsSpec()
    generate: GenerateSpec = GenerateSpec()
    judge: JudgeSpec = JudgeSpec()
    train: TrainSpec | None = None
    evaluate: EvaluateSpec | None = None
    search: SearchSpec | None = None
    equivalence: EquivalenceSpec | None = None
    deliberate: DeliberateSpec | None = None
    ablation: AblationSpec | None = None
    worth: WorthSpec | None = None
    resources: ResourcesSpec = ResourcesSpec()

    @model_validator(mode="before")
    @classmethod
    def _fitting(cls, data: Any) -> Any:
        return fill(data)

    @model_validator(mode="after")
    def _tuned_on_validation_images(self) -> RunSpec:
        if self.judge.tune and not self.split.validation:
            raise ValueError("judge.tune chooses on validation images: set split.validation, or leave it out")
        return self

    @model_validator(mode="after")
    def _kept_features_outlive_a_graph(self) -> RunSpec:
        if self.generate.cache_interval > 1 and self.resources.fast.compile == "reduce-overhead":
            what = "generate.cache_interval keeps features that the graphs of resources.fast.compile overwrite"
            raise ValueError(f"{what}: set compile to default or off")
        return self

    @model_validator(mode="after")
    def _encoder_is_read(self) -> RunSpec:
        if self.model.checkpoint is None and self.pretrain.encoder and self.conditions.features.backend != "checkpoint":
            what = f"conditions.features.backend {self.conditions.features.backend} leaves pretrain.encoder unread"
            raise ValueError(f"{what}: set it to checkpoint, or leave pretrain.encoder out")
        return self

    @model_validator(mode="after")
    def _of_a_generator_trained_here(self) -> RunSpec:
        if self.model.checkpoint is None:
            if isinstance(self.split.train, int):
                self.pretrain.holds_out(self.split.train)
            if self.pretrain.space == "pixel" and self.images.size > LARGEST_PIXELS:
                what = (
                    f"pretrain.space pixel is for images up to {LARGEST_PIXELS} pixels, images.size "
                    f"is {self.images.size}"
                )
                raise ValueError(f"{what}: set it to latent, or images.size to {LARGEST_PIXELS}")
        elif self.pretrain.views.probability:
            what = (
                "pretrain.views needs a generator that learns augmentation labels, and that of "
                "model.checkpoint has none"
            )
            raise ValueError(f"{what}: leave views out")
        return self

    @model_validator(mode="after")
    def _classes_only(self) -> RunSpec:
        asked, pretrain = self.generate, self.pretrain
        if self.model.checkpoint is not None or pretrain.kind == "unet":
            return self
        reads_features = pretrain.kind == "pixel" and pretrain.pixel.features
        made = "pretrain.space pixel" if pretrain.kind == "pixel" else "pretrain.denoiser dit"
        what = f"{made} makes a generator that is told classes only"
        more = ", or pretrain.pixel.features to true" if pretrain.kind == "pixel" else ""
        if (asked.visual_token != "none" and not reads_features) or asked.negative_prompt:
            raise ValueError(f"{what}: set generate.visual_token to none{more}, and no generate.negative_prompt")
        if self.match is not None and self.match.visual_token != "none" and not reads_features:
            raise ValueError(f"{what}: set match.visual_token to none{more}")
        return self
