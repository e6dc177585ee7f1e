"""Whether a denoiser is given all inputs that it was trained with: found by one pass without numbers, whatever its
configuration says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.diffusion.families.family import Family
from engine.errors import ConfigError

SIDE = 32  # of the latents where the configuration names none


def check(folder: Path, family: Family, denoiser: Any) -> None:
    """Refuse a denoiser that asks for more than the family gives, or has weights that change nothing without it
    (ConfigError).

    `denoiser` lies on the meta device; `folder` is its own.
    """
    import torch

    fix = f"use a {family.name} checkpoint"
    config, denoiser = denoiser.config, denoiser.eval()
    side = config.sample_size if isinstance(config.sample_size, int) else SIDE
    parameters = {name: value for name, value in denoiser.named_parameters() if value.requires_grad}
    try:
        with torch.device("meta"):
            noisy, times = torch.zeros(1, config.in_channels, side, side), torch.zeros(1, dtype=torch.int64)
            predicted = family.predict(denoiser, noisy, times, family.example(denoiser))
        gradients = torch.autograd.grad(predicted.sum(), list(parameters.values()), allow_unused=True)
    except Exception as error:  # models raise what they like where an input is missing
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise ConfigError(str(folder), f"does not run on the inputs of {family.name} ({why})", fix) from error
    unused = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    if unused:
        what = f"has {len(unused)} weights for inputs that {family.name} does not have, such as {unused[0]}"
        raise ConfigError(str(folder), what, fix)
