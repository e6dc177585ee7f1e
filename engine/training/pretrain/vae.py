"""The second stage: a VAE, and the latents of the training images that it gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.tiny_models import build_vae, latent_size
from engine.training import draws
from engine.training.pretrain.pretrain_losses import kl_per_dimension
from engine.training.pretrain.pretrain_stage import Setting
from engine.training.schedule import one_cycle

WEIGHT_DECAY = 0.01
ENCODE_BATCH = 256


class Autoencoder(nn.Module):
    """Encode, draw from the posterior with given noise, decode."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(b, 3, H, W) and (b, C, h, w) to the reconstruction (b, 3, H, W) and the posterior's mean and log
        variance."""
        posterior = self.vae.encode(images).latent_dist
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, posterior.mean, posterior.logvar


class VaeStage:
    """Squared error plus a little KL; half of each batch is not augmented, so that real images stay the best known."""

    name = "vae"
    accumulate = 1
    ema = None

    def __init__(self, setting: Setting) -> None:
        self._setting, self._spec = setting, setting.spec.pretrain.vae
        self.kept: dict[str, torch.Tensor] = {}
        self.steps, self.weight_decay = self._spec.steps, WEIGHT_DECAY
        self.clip_norm = 1.0
        size = setting.spec.images.size
        self.model: Any = setting.build(self.name, lambda: build_vae(self._spec, size))
        self.module = Autoencoder(self.model)
        self._latent_shape = (self._spec.latent_channels, latent_size(self._spec, size), latent_size(self._spec, size))

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return one_cycle(step, self.steps, self._spec.lr)

    def loss(self, module: nn.Module, step: int) -> torch.Tensor:
        """Mean over this rank's images; equal parts make the mean of the ranks that of the batch."""
        setting, place, batch = self._setting, self._setting.place, self._spec.batch
        generator = draws.generator(setting.seed, self.name, step)
        images = normalise(setting.images.pixels[setting.rows(self.name, step, batch)])
        plain = batch // 2
        if setting.views is None:
            augmented = setting.augment(images[plain:], generator)
        else:
            augmented, _ = setting.views.draw(images[plain:], generator)
        images = torch.cat([images[:plain], augmented])
        noise = torch.randn(batch, *self._latent_shape, generator=generator)
        part = place.part(batch)
        decoded, mean, logvar = module(images[part], noise[part].to(place.device))
        return functional.mse_loss(decoded, images[part]) + self._spec.kl_weight * kl_per_dimension(mean, logvar)


@torch.no_grad()
def error(vae: Any, images: torch.Tensor) -> float:
    """Root mean squared error of reconstructed images (N, 3, H, W) in [-1, 1], on the scale of 0 to 255."""
    total = 0.0
    for part in images.split(ENCODE_BATCH):
        rebuilt = vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1)
        total += float((rebuilt - part).square().sum())
    return float((total / images.numel()) ** 0.5 * 127.5)


@torch.no_grad()
def encode(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Posterior means (N, C, h, w) of images (N, 3, H, W), not scaled."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in images.split(ENCODE_BATCH)])
