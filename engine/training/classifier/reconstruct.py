"""Real images after the generator's own VAE: what even a perfect sampler could not exceed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.diffusion import hub

BATCH = 16


@lru_cache(maxsize=1)
def _autoencoder(path: str) -> tuple[Any, str]:
    import torch
    from diffusers import AutoencoderKL

    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae: Any = AutoencoderKL.from_pretrained(hub.here(path), subfolder="vae", local_files_only=True)
    return vae.to(device).eval(), device


def reconstructed(pixels: NDArray[np.uint8], path: str) -> NDArray[np.uint8]:
    """(N, H, W, 3) uint8 pixels encoded (the mode of the posterior) and decoded by the VAE of a diffusers directory
    (path or URL)."""
    import torch

    vae, device = _autoencoder(path)
    out = []
    with torch.inference_mode():
        for first in range(0, len(pixels), BATCH):
            images = torch.from_numpy(pixels[first : first + BATCH]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample
            out.append(((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(out)
