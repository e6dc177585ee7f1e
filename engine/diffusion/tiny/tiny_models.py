"""The closed-set models: stock transformers and diffusers classes, sized by the recipe, with freshly drawn weights."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextModel,
)

from engine.diffusion import schedulers
from engine.diffusion.families.dit import CLASSES, Dit, without_dropout
from engine.diffusion.families.family import Family
from engine.diffusion.families.pixel import Pixel, PixelFlow
from engine.diffusion.families.sd import StableDiffusion
from engine.diffusion.tiny import pixelmodels
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec
from engine.spec.training import ClipSpec, DitSpec, EncoderSpec, PixelSpec, PretrainSpec, UNetSpec, VaeSpec

RGB = 3
MLP_RATIO = 4
UNET_GROUPS = 32
TRAIN_TIMESTEPS = 1000
LAYER_SCALE = (
    0.1  # ConvNeXt's 1e-6 is for deep networks; a shallow one would learn next to nothing in its short training
)


def family_of(spec: PretrainSpec) -> Family:
    """The family that a closed-set generator belongs to once it is trained."""
    pixel: Family = PixelFlow() if spec.pixel.objective == "flow" else Pixel()
    known: dict[str, Family] = {"unet": StableDiffusion(), "dit": Dit(), "pixel": pixel}
    return known[spec.kind]


def latent_size(spec: VaeSpec, image_size: int) -> int:
    """Side of the latents: the image's, halved between each two VAE blocks."""
    return image_size // 2 ** (len(spec.blocks) - 1)


def check(spec: PretrainSpec, image_size: int) -> None:
    """Refuse sizes that do not fit together (ConfigError naming the key), before any data is read."""
    clip = spec.clip
    rules = [
        (clip.hidden % clip.heads == 0, "clip.hidden", f"{clip.hidden} is not a multiple of clip.heads {clip.heads}"),
        (image_size % clip.patch == 0, "clip.patch", f"{clip.patch} does not divide images.size {image_size}"),
        *(_encoder_rules(spec, image_size) if spec.encoder else []),
        *(pixelmodels.rules(spec.pixel, image_size) if spec.kind == "pixel" else _latent_rules(spec, image_size)),
    ]
    for holds, key, what in rules:
        if not holds:
            raise ConfigError(f"pretrain.{key}", what, "correct the recipe or --set")


def _latent_rules(spec: PretrainSpec, image_size: int) -> list[tuple[bool, str, str]]:
    vae = spec.vae
    return [
        (all(b % vae.groups == 0 for b in vae.blocks), "vae.blocks", f"must be multiples of vae.groups {vae.groups}"),
        (
            image_size % 2 ** (len(vae.blocks) - 1) == 0,
            "vae.blocks",
            f"are too many to halve {image_size} px that often",
        ),
        *{"unet": _unet_rules, "dit": _dit_rules}[spec.denoiser](spec, latent_size(vae, image_size)),
    ]


def check_generate(spec: PretrainSpec, generate: GenerateSpec) -> None:
    """Refuse a sampling that the generator will not be able to do once it is trained (ConfigError)."""
    family = family_of(spec)
    schedulers.check_kind(generate.scheduler, family.samplers, "the closed-set generator")
    family.check_generate(generate)
    if generate.guidance == "auto" and not (spec.kind == "pixel" and spec.pixel.guide):
        what = "is auto, but the generator has no weaker model: that is what pretrain.pixel.guide keeps"
        raise ConfigError("generate.guidance", what, "set it to cfg")
    own = spec.trained
    scheduler: Any = pixelmodels.build_scheduler(own) if isinstance(own, PixelSpec) else build_scheduler(own)
    steps, strength = generate.num_inference_steps, generate.strength
    schedulers.check_steps(generate.scheduler, scheduler.config, steps, strength, kind=family.samplers)


def _encoder_rules(spec: PretrainSpec, image_size: int) -> list[tuple[bool, str, str]]:
    encoder = spec.encoder
    assert encoder is not None
    halved = encoder.patch * 2 ** (len(encoder.blocks) - 1)
    width, wanted = encoder.blocks[-1], spec.clip.hidden
    return [
        (
            image_size % halved == 0,
            "encoder.blocks",
            f"and patch {encoder.patch} make {image_size} px {halved} times smaller, which does not go",
        ),
        (
            spec.kind != "unet" or width == wanted,
            "encoder.blocks",
            f"end in features of {width}, which take the place of text tokens of pretrain.clip.hidden {wanted}",
        ),
    ]


def _unet_rules(spec: PretrainSpec, side: int) -> list[tuple[bool, str, str]]:
    blocks, head = spec.unet.blocks, spec.unet.head_dim
    return [
        (side % 2 ** (len(blocks) - 1) == 0, "unet.blocks", f"are too many to halve latents of {side} that often"),
        (all(b % head == 0 for b in blocks), "unet.blocks", f"must be multiples of head_dim {head}"),
    ]


def _dit_rules(spec: PretrainSpec, side: int) -> list[tuple[bool, str, str]]:
    dit = spec.dit
    return [
        (dit.hidden % dit.heads == 0, "dit.hidden", f"{dit.hidden} is not a multiple of dit.heads {dit.heads}"),
        (
            dit.hidden % 4 == 0,
            "dit.hidden",
            f"{dit.hidden} is not a multiple of 4, as positions in two dimensions need",
        ),
        (side % dit.patch == 0, "dit.patch", f"{dit.patch} does not divide latents of {side}"),
    ]


def build_clip(spec: ClipSpec, tokenizer: CLIPTokenizer, image_size: int) -> CLIPModel:
    """A CLIPModel whose projected features are as wide as its text tokens, since they take the place of one."""
    shared = {
        "hidden_size": spec.hidden,
        "intermediate_size": MLP_RATIO * spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "projection_dim": spec.hidden,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shared,
    )
    vision = CLIPVisionConfig(image_size=image_size, patch_size=spec.patch, num_channels=RGB, **shared)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=spec.hidden))


def build_encoder(spec: EncoderSpec) -> ConvNextModel:
    """A ConvNeXt (arXiv 2201.03545), which has no statistics of batches, so that an image's features are its own."""
    config = ConvNextConfig(
        num_channels=RGB,
        patch_size=spec.patch,
        num_stages=len(spec.blocks),
        hidden_sizes=list(spec.blocks),
        depths=[spec.layers] * len(spec.blocks),
        layer_scale_init_value=LAYER_SCALE,
        drop_path_rate=0.0,
    )
    return ConvNextModel(config)


def build_vae(spec: VaeSpec, image_size: int) -> AutoencoderKL:
    """An AutoencoderKL without mid-block attention; `scaling_factor` is set when its latents are known."""
    return AutoencoderKL(
        in_channels=RGB,
        out_channels=RGB,
        down_block_types=("DownEncoderBlock2D",) * len(spec.blocks),
        up_block_types=("UpDecoderBlock2D",) * len(spec.blocks),
        block_out_channels=spec.blocks,
        layers_per_block=spec.layers,
        latent_channels=spec.latent_channels,
        norm_num_groups=spec.groups,
        sample_size=image_size,
        mid_block_add_attention=False,
    )


def build_unet(spec: UNetSpec, vae: VaeSpec, image_size: int, cross_attention_dim: int) -> UNet2DConditionModel:
    """A U-Net over the VAE's latents: plain blocks at full resolution, cross-attention in all deeper ones."""
    deeper = len(spec.blocks) - 1
    return UNet2DConditionModel(
        sample_size=latent_size(vae, image_size),
        in_channels=vae.latent_channels,
        out_channels=vae.latent_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        block_out_channels=spec.blocks,
        layers_per_block=spec.layers,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=tuple(
            block // spec.head_dim for block in spec.blocks
        ),  # diffusers means the number of heads
        norm_num_groups=gcd(UNET_GROUPS, *spec.blocks),
    )


def build_dit(spec: DitSpec, vae: VaeSpec, image_size: int) -> DiTTransformer2DModel:
    """A DiT over the VAE's latents without learnt variance, whose blocks begin as the identity (arXiv 2212.09748,
    adaLN-Zero).

    It has the 1,000 classes and the null class that DiTPipeline counts on; classes are dropped by the null class alone.
    """
    dit: Any = DiTTransformer2DModel(
        num_attention_heads=spec.heads,
        attention_head_dim=spec.hidden // spec.heads,
        in_channels=vae.latent_channels,
        out_channels=vae.latent_channels,
        num_layers=spec.layers,
        sample_size=latent_size(vae, image_size),
        patch_size=spec.patch,
        num_embeds_ada_norm=CLASSES,
    )
    for layer in (*(block.norm1.linear for block in dit.transformer_blocks), dit.proj_out_1, dit.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    without_dropout(dit)
    return dit  # type: ignore[no-any-return]


def build_scheduler(spec: UNetSpec | DitSpec) -> DDIMScheduler:
    """Stable Diffusion's schedule (scaled-linear betas, 0.00085 to 0.012 over 1,000 steps) for this prediction type."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type=spec.prediction,
    )


def parameters(model: torch.nn.Module) -> int:
    """How many numbers a model has learnt."""
    return sum(parameter.numel() for parameter in model.parameters())
