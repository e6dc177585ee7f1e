"""The sections of a recipe that train generators: from scratch, and by distribution matching."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from engine.errors import ConfigError
from engine.spec.fields import Count, Fraction, Number, Probability, Spec, _integral


class ClipSpec(Spec):
    """The closed-set CLIP: sizes and training of `transformers.CLIPModel`."""

    hidden: Count = 64
    layers: Count = 2
    heads: Count = 4
    patch: Count = 2
    steps: Count = 300
    batch: Count = 96
    lr: Annotated[Number, Field(gt=0)] = 1e-3
    weight_decay: Annotated[Number, Field(ge=0)] = 0.05


class VaeSpec(Spec):
    """The closed-set VAE: sizes and training of `diffusers.AutoencoderKL`."""

    blocks: tuple[Count, ...] = (16, 32)
    layers: Count = 1
    latent_channels: Count = 4
    groups: Count = 8
    steps: Count = 800
    batch: Count = 48
    lr: Annotated[Number, Field(gt=0)] = 4e-3
    kl_weight: Annotated[Number, Field(ge=0)] = 1e-5


class UNetSpec(Spec):
    """The closed-set U-Net: sizes and training of `diffusers.UNet2DConditionModel`."""

    blocks: tuple[Count, ...] = (64, 128)
    layers: Count = 1
    head_dim: Count = 16
    steps: Count = 400
    batch: Count = 64
    lr: Annotated[Number, Field(gt=0)] = 2e-3
    clip_norm: Annotated[Number, Field(gt=0)] = 1.0
    ema: Annotated[Number, Field(ge=0, lt=1)] = 0.995
    snr_gamma: Annotated[Number, Field(gt=0)] = 5.0
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    drop_condition: Probability = 0.1
    drop_image: Probability = 0.1


class EncoderSpec(Spec):
    """A network whose features stand in the place of CLIP's: sizes and training of `transformers.ConvNextModel`.

    `kind`: simclr learns from two views of each image and no label, classifier from the labels. `blocks`: channels of
    each stage, the last one being the width of the features; `patch`: pixels a side that the stem takes as one. `crop`:
    the least share of an image that a view shows; `jitter`: the most by which brightness, contrast and saturation of a
    view are off.
    """

    kind: Literal["simclr", "classifier"] = "simclr"
    blocks: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64, 64)
    layers: Count = 1
    patch: Count = 2
    steps: Count = 600
    batch: Annotated[int, BeforeValidator(_integral), Field(ge=2, le=65536)] = 128
    lr: Annotated[Number, Field(gt=0)] = 2e-3
    weight_decay: Annotated[Number, Field(ge=0)] = 0.05
    temperature: Annotated[Number, Field(gt=0, le=10)] = 0.2
    crop: Annotated[Number, Field(gt=0, le=1)] = 0.6
    jitter: Annotated[Number, Field(ge=0, le=1)] = 0.2


class DitSpec(Spec):
    """The closed-set transformer that is told a class: sizes and training of `diffusers.DiTTransformer2DModel`."""

    hidden: Count = 64
    layers: Count = 4
    heads: Count = 4
    patch: Count = 1
    steps: Count = 400
    batch: Count = 64
    lr: Annotated[Number, Field(gt=0)] = 2e-3
    clip_norm: Annotated[Number, Field(gt=0)] = 1.0
    ema: Annotated[Number, Field(ge=0, lt=1)] = 0.995
    snr_gamma: Annotated[Number, Field(gt=0)] = 5.0
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    drop_condition: Probability = 0.1


class PixelSpec(Spec):
    """The closed-set U-Net in pixels: sizes and training of `diffusers.UNet2DModel`.

    `objective`: EDM's preconditioned denoising (arXiv 2206.00364), or flow matching (arXiv 2210.02747). `noise_mean`,
    `noise_std`: ln of the noise-to-image ratio is normal in training, under both (under flow matching it is the logit
    of the time).
    `attention`: the sides in pixels at which blocks have self-attention; `ema`: the length of the average of the
    weights, relative to the training (arXiv 2312.02696), where no image is held out to choose it by; `guide`: the share
    of the training after which the weaker model of autoguidance is kept, 0: none.
    """

    objective: Literal["edm", "flow"] = "edm"
    blocks: tuple[Count, ...] = (32, 64)
    layers: Count = 1
    attention: tuple[Count, ...] = ()
    head_dim: Count = 32
    dropout: Probability = 0.1
    steps: Count = 2000
    batch: Count = 64
    lr: Annotated[Number, Field(gt=0)] = 2e-3
    weight_decay: Annotated[Number, Field(ge=0)] = 0.01
    clip_norm: Annotated[Number, Field(gt=0)] = 1.0
    ema: Annotated[Number, Field(gt=0, le=0.25)] = 0.1
    noise_mean: Annotated[Number, Field(ge=-10, le=10)] = -1.2
    noise_std: Annotated[Number, Field(gt=0, le=10)] = 1.2
    features: bool = False
    drop_condition: Probability = 0.1
    drop_image: Probability = 0.1
    guide: Fraction = 0.125
    dtype: Literal["float32", "bfloat16"] = "float32"


class ViewsSpec(Spec):
    """Non-leaking augmentation of what the denoiser (and the VAE) learns from: views with labels, which are zero at
    sampling.

    Each kind has `probability` on its own: scale, stretch and shift, rotation by up to `degrees`, and where they are
    switched on the mirror image and colours.
    """

    probability: Probability = 0.0
    degrees: Annotated[Number, Field(ge=0, le=180)] = 20.0
    mirror: bool = False
    colour: bool = False

    @model_validator(mode="after")
    def _some(self) -> ViewsSpec:
        if (self.mirror or self.colour) and not self.probability:
            raise ValueError("mirror and colour are kinds of views: raise probability")
        return self


class PretrainSpec(Spec):
    """The closed-set generator: trained from scratch on the training split only, in latents of a VAE or in pixels (at
    most 64 a side).

    `denoiser` says which of two it has in latents. `held_out`: the share of the training split by whose denoising loss
    the length of the training and of the average of its weights are chosen.
    """

    space: Literal["latent", "pixel"] = "latent"

    clip: ClipSpec = ClipSpec()
    encoder: EncoderSpec | None = None
    vae: VaeSpec = VaeSpec()
    denoiser: Literal["unet", "dit"] = "unet"
    unet: UNetSpec = UNetSpec()
    dit: DitSpec = DitSpec()
    text_length: Annotated[int, BeforeValidator(_integral), Field(ge=4, le=77)] = 16
    augment: Literal["none", "flip", "affine"] = "affine"
    pixel: PixelSpec = PixelSpec()
    views: ViewsSpec = ViewsSpec()
    held_out: Annotated[Number, Field(ge=0, le=0.5)] = 0.0
    checkpoint_every: Count = 200

    @property
    def kind(self) -> Literal["unet", "dit", "pixel"]:
        """Which denoiser is trained."""
        return "pixel" if self.space == "pixel" else self.denoiser

    @property
    def trained(self) -> UNetSpec | DitSpec | PixelSpec:
        """The settings of the denoiser."""
        own: dict[str, UNetSpec | DitSpec | PixelSpec] = {"unet": self.unet, "dit": self.dit, "pixel": self.pixel}
        return own[self.kind]

    def holds_out(self, images: int) -> int:
        """How many of so many training images nothing is trained on; ConfigError where a share is asked for that is
        none."""
        count = int(images * self.held_out)
        if self.held_out and not count:
            what = f"{self.held_out:g} of {images} training images is none"
            raise ConfigError("pretrain.held_out", what, "raise it, or set it to 0")
        return count

    @model_validator(mode="after")
    def _fits(self) -> PretrainSpec:
        if self.space == "pixel" and self.denoiser != "unet":
            raise ValueError(f"denoiser {self.denoiser} works in latents: set space to latent, or leave denoiser out")
        if self.kind == "dit" and self.views.probability:
            raise ValueError("views need augmentation labels, which denoiser dit has no place for: leave views out")
        return self


class MatchSpec(Spec):
    """Distribution matching (arXiv 2310.10402): a fine-tune on the training split with an MMD term beside the denoising
    loss."""

    adapter: Literal["lora", "full"] = "lora"
    rank: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=1024)] = 4
    alpha: Annotated[Number, Field(gt=0)] | None = None
    targets: Literal["attention", "conv", "attention+conv"] | tuple[str, ...] = "attention"
    mmd: Literal["residual", "residual_per_class", "kernel_latent", "kernel_feature", "none"] = "residual"
    mmd_weight: Annotated[Number, Field(ge=0)] = 0.192
    steps: Count = 1000
    batch: Count = 8
    accumulate: Count = 1
    lr: Annotated[Number, Field(gt=0)] = 1e-4
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"
    warmup: Annotated[int, BeforeValidator(_integral), Field(ge=0)] = 0
    weight_decay: Annotated[Number, Field(ge=0)] = 0.01
    clip_norm: Annotated[Number, Field(gt=0)] = 1.0
    ema: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    snr_gamma: Annotated[Number, Field(gt=0)] = 5.0
    drop_condition: Probability = 0.1
    drop_image: Probability = 0.1
    visual_token: Literal["own", "none"] = "own"
    augment: Literal["none", "flip"] = "none"
    precompute: bool = True
    gradient_checkpointing: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: Count = 200
    samples: Annotated[int, BeforeValidator(_integral), Field(ge=0, le=64)] = 8
    sample_every: Count | None = None

    @model_validator(mode="after")
    def _consistent(self) -> MatchSpec:
        if self.mmd != "none" and self.batch < 2:
            raise ValueError(f"batch {self.batch} is no distribution: mmd {self.mmd} needs at least 2 images")
        if self.mmd == "residual_per_class" and self.batch % 2:
            raise ValueError(f"batch {self.batch} is odd: mmd residual_per_class draws images in pairs of one class")
        if not self.targets:
            raise ValueError("targets must name at least one kind of module")
        return self
