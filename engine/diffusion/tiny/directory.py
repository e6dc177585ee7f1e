"""Writes the trained closed-set stack as one directory that stock `DiffusionPipeline.from_pretrained` opens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline, DDPMPipeline, DiTPipeline, EDMEulerScheduler, StableDiffusionPipeline
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from engine.diffusion.families import pixelpipeline
from engine.diffusion.families.pixel import GUIDE, GUIDE_PROJECTION, PARTS, PROJECTION
from engine.diffusion.layout import INDEX
from engine.diffusion.tiny.tokenizer import save_tokenizer

MEAN = STD = [0.5, 0.5, 0.5]


@dataclass(frozen=True)
class Stack:
    """The trained CLIPModel, AutoencoderKL (with its scaling factor; None in pixels), U-Net or DiT (averaged),
    scheduler, the classes by number, a U-Net in pixels' weaker model, if there is one, and the `ConvNextModel` that
    image features come from, if not from CLIP.
    """

    tokenizer: CLIPTokenizer
    clip: Any
    vae: Any
    denoiser: Any
    scheduler: Any
    class_names: tuple[str, ...] = ()
    guide: Any = None
    encoder: Any = None

    @property
    def denoiser_name(self) -> str:
        """`unet`, `dit` or `pixel`, as the recipe says."""
        names = {"UNet2DConditionModel": "unet", "DiTTransformer2DModel": "dit", "UNet2DModel": "pixel"}
        return names[type(self.denoiser).__name__]


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1]: what the VAE and the saved feature extractor use."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def feature_extractor(image_size: int) -> CLIPImageProcessor:
    """The image processor that equals `normalise` on images of the stack's own size."""
    side = {"height": image_size, "width": image_size}
    return CLIPImageProcessor(size=side, do_center_crop=False, crop_size=side, image_mean=MEAN, image_std=STD)


def save(stack: Stack, folder: Path) -> None:
    """Write the directory: the pipeline's parts in safetensors, and `clip/`, the whole CLIPModel, for features and
    scores.

    `encoder/`, where there is one, is a whole transformers directory: its image processor lies in it.
    """
    stack.clip.save_pretrained(folder / "clip")
    if stack.encoder is not None:
        stack.encoder.save_pretrained(folder / "encoder")
        feature_extractor(stack.clip.config.vision_config.image_size).save_pretrained(folder / "encoder")
    {"unet": _save_unet, "dit": _save_dit, "pixel": _save_pixel}[stack.denoiser_name](stack, folder)


def _save_dit(stack: Stack, folder: Path) -> None:
    """A DiTPipeline knows no text: the CLIP's tokenizer lies with it, its image processor beside; its index names the
    classes."""
    pipeline: Any = DiTPipeline(transformer=stack.denoiser, vae=stack.vae, scheduler=stack.scheduler)
    pipeline.register_to_config(id2label={str(number): name for number, name in enumerate(stack.class_names)})
    pipeline.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(stack.tokenizer, folder / "clip")
    feature_extractor(stack.vae.config.sample_size).save_pretrained(folder / "feature_extractor")


def _save_pixel(stack: Stack, folder: Path) -> None:
    """What stock diffusers opens as ConsistencyModelPipeline, which draws by class (DDPMPipeline for flow matching,
    which does not).

    Beside it the projection of image features and the guide.
    """
    written = pixelpipeline.save(stack.denoiser, folder, ("unet", PROJECTION))
    if stack.guide is not None:
        written += pixelpipeline.save(stack.guide, folder, (GUIDE, GUIDE_PROJECTION))
    kind: Any = ConsistencyModelPipeline if isinstance(stack.scheduler, EDMEulerScheduler) else DDPMPipeline
    pipeline = kind(unet=stack.denoiser, scheduler=stack.scheduler)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    pipeline.save_config(folder)
    index = json.loads((folder / INDEX).read_text())
    index |= {name: ["diffusers", PARTS[name].classes[0]] for name in written}
    index["id2label"] = {str(number): name for number, name in enumerate(stack.class_names)}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    save_tokenizer(stack.tokenizer, folder / "clip")
    feature_extractor(stack.denoiser.config.sample_size).save_pretrained(folder / "feature_extractor")


def _save_unet(stack: Stack, folder: Path) -> None:
    text_encoder = CLIPTextModel(stack.clip.config.text_config)
    text_encoder.load_state_dict(stack.clip.text_model.state_dict())
    image_encoder = CLIPVisionModelWithProjection(stack.clip.config.vision_config)
    image_encoder.vision_model.load_state_dict(stack.clip.vision_model.state_dict())
    image_encoder.visual_projection.load_state_dict(stack.clip.visual_projection.state_dict())
    pipeline: Any = StableDiffusionPipeline(
        vae=stack.vae,
        text_encoder=text_encoder.eval(),
        tokenizer=stack.tokenizer,
        unet=stack.denoiser,
        scheduler=stack.scheduler,
        image_encoder=image_encoder.eval(),
        feature_extractor=feature_extractor(stack.vae.config.sample_size),
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(stack.tokenizer, folder / "tokenizer")
