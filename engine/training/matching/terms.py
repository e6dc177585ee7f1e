"""The MMD terms by name, each a function of what one batch gives; tensors are those of the whole batch, over all
workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.diffusion.process import Process
from engine.training.matching import matching_losses

# Images (N, 3, H, W), about [-1, 1], of scaled latents; and their features (N, D).
Features = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """B latents with their noisy versions, what should be predicted and what is; only `predicted` has a gradient."""

    latents: torch.Tensor
    noisy: torch.Tensor
    times: torch.Tensor
    aim: torch.Tensor
    predicted: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Tools:
    """What terms work with besides a batch; `features` of latents is given for `kernel_feature` only."""

    process: Process
    gamma: float
    features: Features | None = None


def _residual(batch: Batch, tools: Tools) -> torch.Tensor:
    return matching_losses.residual(batch.predicted, batch.aim, tools.process.weights(batch.times, tools.gamma))


def _residual_per_class(batch: Batch, tools: Tools) -> torch.Tensor:
    weights = tools.process.weights(batch.times, tools.gamma)
    return matching_losses.residual_per_class(batch.predicted, batch.aim, weights, batch.labels)


def _kernel_latent(batch: Batch, tools: Tools) -> torch.Tensor:
    clean = tools.process.clean(batch.noisy, batch.predicted, batch.times)
    share = tools.process.clean_weights(batch.times, tools.gamma)
    return matching_losses.kernel_mmd(clean.flatten(1), batch.latents.flatten(1), share)


def _kernel_feature(batch: Batch, tools: Tools) -> torch.Tensor:
    """Both sides go through the same decoder, so that its errors are no difference between them."""
    assert tools.features is not None
    clean = tools.process.clean(batch.noisy, batch.predicted, batch.times)
    with torch.no_grad():
        real = tools.features(batch.latents)
    return matching_losses.kernel_mmd(
        tools.features(clean), real, tools.process.clean_weights(batch.times, tools.gamma)
    )


TERMS: dict[str, Callable[[Batch, Tools], torch.Tensor]] = {
    "residual": _residual,
    "residual_per_class": _residual_per_class,
    "kernel_latent": _kernel_latent,
    "kernel_feature": _kernel_feature,
}
