"""Sampling of class-conditional EDM U-Nets in pixels: a generator a sample, images to start from, both kinds of
guidance."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline, DDPMPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from engine.diffusion.families.family import Condition


class Told(nn.Module):
    """In the place of a U-Net's class embedding: the class's own vector, plus what the projection makes of an image
    feature."""

    def __init__(self, table: nn.Embedding, projection: nn.Module) -> None:
        super().__init__()
        self.table, self.projection = table, projection

    def forward(self, told: Condition) -> torch.Tensor:
        """`labels` (B,) and `states` (B, 1, D) to (B, E); a feature of zeros is none and adds nothing."""
        features = told["states"][:, 0]
        given = features.ne(0).any(1, keepdim=True)
        return self.table(told["labels"]) + given * self.projection(features)[0]


class Pixels(nn.Module):
    """Where a VAE stands in other pipelines: latents are the images themselves, in float32 whatever the U-Net's
    dtype."""

    config = SimpleNamespace(scaling_factor=1.0, shift_factor=None, block_out_channels=(1,), latent_channels=3)
    dtype = torch.float32  # bfloat16 has steps of half a 255th near white

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self._like = [unet]  # in a list: no part of this module, whose dtype and layout are changed by themselves

    @property
    def device(self) -> torch.device:
        """The U-Net's."""
        return self._like[0].device  # type: ignore[no-any-return]

    def encode(self, images: torch.Tensor) -> Any:
        """(N, 3, H, W) as they are."""
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: images))

    def decode(self, latents: torch.Tensor) -> Any:
        """(N, 3, H, W) as they are."""
        return SimpleNamespace(sample=latents)


def join(unet: Any, projection: Any) -> Any:
    """The U-Net, told image features too; it takes `labels` and `states` then."""
    if projection is not None and not isinstance(unet.class_embedding, Told):
        unet.class_embedding = Told(unet.class_embedding, projection)
    return unet


def save(unet: Any, folder: Path, names: tuple[str, str]) -> tuple[str, ...]:
    """Write a U-Net, and its projection if it has one, as the components `names` that stock diffusers opens; gives
    those written."""
    told = unet.class_embedding
    if not isinstance(told, Told):
        unet.save_pretrained(folder / names[0], safe_serialization=True)
        return names[:1]
    projection: Any = told.projection
    projection.save_pretrained(folder / names[1], safe_serialization=True)
    unet.class_embedding = told.table
    try:
        unet.save_pretrained(folder / names[0], safe_serialization=True)
    finally:
        unet.class_embedding = told
    return names


class _InPixels:
    """What both pipelines do: parts of their own beside the stock ones, each sample's own generator, guidance, images
    to start from."""

    unet: Any
    scheduler: Any
    image_projection: Any
    guide: Any
    register_modules: Any
    _execution_device: torch.device

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        image_projection: Any = None,
        guide: Any = None,
        guide_projection: Any = None,
        **kept: Any,
    ) -> None:
        super().__init__(unet=unet, scheduler=scheduler)  # type: ignore[call-arg]
        self.register_modules(image_projection=image_projection, guide=guide, guide_projection=guide_projection)
        join(unet, image_projection)
        if guide is not None:
            join(guide, guide_projection)
        self.vae = Pixels(unet)

    @property
    def components(self) -> dict[str, object]:
        """What the constructor takes."""
        names = ("unet", "scheduler", "image_projection", "guide", "guide_projection")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def __call__(
        self,
        told: Condition,
        without: Condition | None = None,
        guidance_scale: float = 1.0,
        generator: list[torch.Generator] | None = None,
        num_inference_steps: int = 18,
        image: torch.Tensor | None = None,
        strength: float = 1.0,
        output_type: str = "latent",
    ) -> ImagePipelineOutput:
        """`told`: batched; `without`: what classifier-free guidance leads away from; without it the guide's word is,
        where there is one.

        `image`: (N, 3, H, W) in [-1, 1] for strength below 1. The images (N, 3, H, W) float32, about [-1, 1], are the
        result.
        """
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents, timesteps = self._start(len(told["labels"]), generator, image, strength)
        self.num_timesteps = len(timesteps)
        takes = inspect.signature(self.scheduler.step).parameters
        options = {"generator": generator} if "generator" in takes else {}
        for t in timesteps:
            taken = self._taken(latents, t).to(self.unet.dtype)
            predicted = self._predict(taken, t, told, without, guidance_scale)
            latents = self.scheduler.step(predicted.to(latents), t, latents, **options).prev_sample
        return ImagePipelineOutput(images=latents)

    def _predict(
        self, taken: torch.Tensor, t: torch.Tensor, told: Condition, without: Condition | None, scale: float
    ) -> torch.Tensor:
        """The guided output: without + scale (with - without), where `without` is no condition, or the weaker model's
        output."""
        if without is not None:
            both = {name: torch.cat([without[name], value]) for name, value in told.items()}
            base, given = _run(self.unet, torch.cat([taken, taken]), t, both).chunk(2)
            return base + scale * (given - base)
        given = _run(self.unet, taken, t, told)
        if self.guide is None or scale <= 1:
            return given
        base = _run(self.guide, taken, t, told)
        return base + scale * (given - base)

    def _start(
        self, count: int, generator: Any, image: torch.Tensor | None, strength: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first image and the time steps that are left, counted as StableDiffusionImg2ImgPipeline counts them."""
        scheduler, config = self.scheduler, self.unet.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        noise = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        if image is None:
            return noise * getattr(scheduler, "init_noise_sigma", 1.0), scheduler.timesteps
        steps = scheduler.num_inference_steps
        first = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
        timesteps = scheduler.timesteps[first:]
        scheduler.set_begin_index(first)
        return self._noised(image.to(noise), timesteps[:1].repeat(count), noise), timesteps

    def _taken(self, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _noised(self, images: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class ClassToPixels(_InPixels, ConsistencyModelPipeline):
    """ConsistencyModelPipeline's sampling, which with an EDM sampler is EDM's, plus what it lacks.

    Where there is neither guidance, feature nor image the results are equal to the stock pipeline's, but for the layout
    of the
    noise: here each sample has its own generator.
    """

    def _taken(self, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.scheduler.scale_model_input(latents, t)  # type: ignore[no-any-return]

    def _noised(self, images: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.scheduler.add_noise(images, noise, t)  # type: ignore[no-any-return]


class FlowToPixels(_InPixels, DDPMPipeline):
    """The same under flow matching; DDPMPipeline opens its parts, but does not tell a U-Net its class."""

    def _taken(self, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return latents

    def _noised(self, images: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.scheduler.scale_noise(images, t, noise)  # type: ignore[no-any-return]


def _run(unet: Any, taken: torch.Tensor, t: torch.Tensor, told: Condition) -> torch.Tensor:
    given = told if "states" in told else told["labels"]
    times = t.to(taken.device).expand(len(taken))  # in float32: rounded to bfloat16 they would be other noise levels
    return unet(taken, times, class_labels=given, return_dict=False)[0]  # type: ignore[no-any-return]
