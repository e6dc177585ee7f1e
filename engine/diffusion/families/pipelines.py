"""Stock diffusers pipelines as sampling calls them: image-to-image from latents, and DiT with a generator a sample."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import (
    DiTPipeline,
    ImagePipelineOutput,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.utils.torch_utils import randn_tensor

__all__ = (
    "ClassToImage",
    "LatentImg2Img",
    "LatentImg2ImgXL",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
)


class _FromLatents:
    """An img2img whose `image` is a scaled latent whatever its channels (stock takes only 4 for a latent)."""

    scheduler: Any

    def prepare_latents(
        self,
        image: torch.Tensor,
        timestep: torch.Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: list[torch.Generator] | None = None,
        add_noise: bool = True,
    ) -> torch.Tensor:
        """`image` (N, C, h, w) noised to `timestep`."""
        latents = image.to(device=device, dtype=dtype)
        noise = randn_tensor(latents.shape, generator=generator, device=device, dtype=dtype)
        noisy: torch.Tensor = self.scheduler.add_noise(latents, noise, timestep)
        return noisy


class LatentImg2Img(_FromLatents, StableDiffusionImg2ImgPipeline):
    """For Stable Diffusion 1 and 2."""


class LatentImg2ImgXL(_FromLatents, StableDiffusionXLImg2ImgPipeline):
    """For Stable Diffusion XL."""


class ClassToImage(DiTPipeline):
    """DiTPipeline's sampling, with a random generator a sample, latents to start from, and latents as the result.

    Stock steps both halves of a guided batch through the scheduler, which samplers with noise of their own cannot do
    for a generator a sample; here the guided prediction is stepped once. Where the sampler is deterministic the results
    are equal.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        class_labels: torch.Tensor,
        null_labels: torch.Tensor | None = None,
        guidance_scale: float = 4.0,
        generator: list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        image: torch.Tensor | None = None,
        strength: float = 1.0,
        output_type: str = "latent",
    ) -> ImagePipelineOutput:
        """`class_labels` (N,); `null_labels` (N,) for guidance; `image`: scaled latents (N, C, h, w) for strength below
        1."""
        model: Any = self.transformer
        labels = class_labels if null_labels is None else torch.cat([null_labels, class_labels])
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents, timesteps = self._start(len(class_labels), generator, image, strength)
        self.num_timesteps = len(timesteps)
        options = self._options(generator)
        for t in timesteps:
            taken = latents if null_labels is None else torch.cat([latents, latents])
            taken = self.scheduler.scale_model_input(taken, t)
            predicted = model(taken, timestep=t.expand(len(taken)), class_labels=labels, return_dict=False)[0]
            predicted = predicted[:, : latents.shape[1]]  # the rest is a learnt variance
            if null_labels is not None:
                without, given = predicted.chunk(2)
                predicted = without + guidance_scale * (given - without)
            latents = self.scheduler.step(predicted, t, latents, **options).prev_sample.to(latents.dtype)
        return ImagePipelineOutput(images=latents)

    def _start(
        self, count: int, generator: Any, image: torch.Tensor | None, strength: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first latents and the time steps that are left, counted as StableDiffusionImg2ImgPipeline counts them."""
        scheduler, config, dtype = self.scheduler, self.transformer.config, self.transformer.dtype
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        noise = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=dtype)
        if image is None:
            return noise * scheduler.init_noise_sigma, scheduler.timesteps
        steps = scheduler.num_inference_steps
        first = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
        timesteps = scheduler.timesteps[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        return scheduler.add_noise(image.to(noise), noise, timesteps[:1].repeat(count)), timesteps

    def _options(self, generator: Any) -> dict[str, object]:
        takes = inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if "generator" in takes else {}
