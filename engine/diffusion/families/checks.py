"""Whether a directory's components fit each other and the image size, from their configurations alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec

PREDICTION_TYPES = ("epsilon", "v_prediction")
FITTING = "use components that were made for each other"
UNET_INPUTS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)
Config = Mapping[str, Any]


def scale(vae: Config) -> int:
    """Pixels a latent pixel stands for, along a side."""
    return int(2 ** (len(vae.get("block_out_channels", (64,))) - 1))


def latent_channels(folder: Path, network: str, taken: tuple[int, int], vae: Config) -> int:
    """The VAE's; `taken`: how many the network takes and gives. Refuses VAEs that normalise their latents by
    channel."""
    channels = vae.get("latent_channels", 4)
    if taken != (channels, channels):
        what = f"the {network} takes {taken[0]} channels and gives {taken[1]}, the VAE's latents have {channels}"
        raise ConfigError(str(folder), what, f"inpainting and other special {network}s are not for this")
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        what = "normalises latents by channel (latents_mean, latents_std), which is not done here"
        raise ConfigError(str(folder / "vae"), what, "use another checkpoint")
    return int(channels)


def unet_inputs(folder: Path, unet: Config, name: str, addition: str | None = None) -> None:
    """Refuse a U-Net whose configuration names inputs besides latents, time and text; `addition`: the added ones that
    it must name."""
    special = next(
        (key for key in UNET_INPUTS if unet.get(key) and (key, unet[key]) != ("addition_embed_type", addition)), None
    )
    if special or unet.get("addition_embed_type") != addition:
        what = (
            f"needs inputs that {name} does not have ({special})"
            if special
            else f"does not take the inputs of {name} (addition_embed_type {addition})"
        )
        raise ConfigError(str(folder / "unet"), what, f"use a {name} checkpoint")


def latent_size(image_size: int, scale: int, smallest: int, step: int) -> int:
    """The side of the latents of images that must be multiples of `step` from `smallest` on."""
    if image_size % step or image_size < smallest:
        what = f"{image_size} pixels do not fit the checkpoint, which halves them {smallest.bit_length() - 1} times"
        raise ConfigError("images.size", what, f"use a multiple of {step} from {max(step, smallest)} on")
    return image_size // scale


def unet_latent_size(unet: Config, vae: Config, image_size: int) -> int:
    """Stock pipelines take multiples of 8, and U-Nets odd sides down to one pixel at the bottom."""
    smallest = scale(vae) * 2 ** (len(unet.get("block_out_channels", (320, 640, 1280, 1280))) - 1)
    return latent_size(image_size, scale(vae), smallest, max(scale(vae), 8))


def patch_latent_size(transformer: Config, vae: Config, image_size: int) -> int:
    """Transformers take whole patches of latents."""
    patch = scale(vae) * int(transformer.get("patch_size", 2))
    return latent_size(image_size, scale(vae), patch, max(patch, 8))


def prediction_type(folder: Path, scheduler: Config, name: str) -> str:
    """Noise or velocity; noise with zero terminal SNR is refused (arXiv 2305.08891, section 3.2)."""
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        what = f"predicts {prediction!r}, which is neither of {', '.join(PREDICTION_TYPES)}"
        raise ConfigError(str(folder / "scheduler"), what, f"use a {name} checkpoint")
    if prediction == "epsilon" and scheduler.get("rescale_betas_zero_snr"):
        what = (
            "predicts noise at a last step that is noise alone (rescale_betas_zero_snr), "
            "where that says nothing of the image"
        )
        raise ConfigError(str(folder / "scheduler"), what, "use a checkpoint of v_prediction, or set it to false")
    return str(prediction)


def text_length(text: Config, tokenizer: Config) -> int:
    """How many tokens a CLIP text encoder reads."""
    positions = text.get("max_position_embeddings", 77)
    return min(int(tokenizer.get("model_max_length", positions)), int(positions))


def two_text_lengths(folder: Path, configs: Mapping[str, Config]) -> int:
    """The length that two CLIP text encoders share, whose tokens are put side by side."""
    one, two = (text_length(configs[f"text_encoder{n}"], configs[f"tokenizer{n}"]) for n in ("", "_2"))
    if one != two:
        what = f"the text encoders read {one} and {two} tokens, which cannot be put side by side"
        raise ConfigError(str(folder), what, FITTING)
    return one


def reads(folder: Path, network: str, width: int, written: int, what: str = "text tokens") -> None:
    """Refuse a network that reads another width than the text encoders write."""
    if width != written:
        plural = "text encoder writes" if network == "U-Net" and what == "text tokens" else "text encoders write"
        raise ConfigError(str(folder), f"the {network} reads {what} of width {width}, the {plural} {written}", FITTING)


def no_kept_features(generate: GenerateSpec, name: str) -> None:
    """Refuse step caching, which needs a U-Net."""
    if generate.cache_interval > 1:
        what = f"keeps the deep features of a U-Net, and {name} is a transformer"
        raise ConfigError("generate.cache_interval", what, "leave it out")
