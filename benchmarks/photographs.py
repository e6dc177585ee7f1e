"""Photographs for benchmarks whose models have random weights: what a codec costs depends on the picture, and noise is
not one.

The two photographs that scikit-learn carries are cut into crops. `Developed` makes a VAE answer with such crops: it
decodes as always, so its time is all there, and then gives pictures that a trained model could have drawn, the same
ones to every side of a comparison.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CROPS = 32


def crops(size: tuple[int, int], count: int = CROPS, seed: int = 0) -> NDArray[np.uint8]:
    """(count, height, width, 3) uint8 crops of real photographs, `size` is (width, height)."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    random, found = np.random.default_rng(seed), []
    for number in range(count):
        whole = photographs[number % len(photographs)]
        height = int(random.integers(200, whole.height + 1))
        width = min(whole.width, height * size[0] // size[1])
        left, top = (int(random.integers(0, rest + 1)) for rest in (whole.width - width, whole.height - height))
        crop = whole.crop((left, top, left + width, top + height))
        found.append(np.asarray(crop.resize(size, Image.Resampling.LANCZOS)))
    return np.stack(found)


def write_folder(folder: Path, count: int = 200, size: tuple[int, int] = (500, 375), classes: int = 2) -> Path:
    """Crops as JPEG files of ImageNet's usual size, a folder a class; returns `folder`."""
    for number, pixels in enumerate(crops(size, count)):
        place = folder / f"class{number % classes}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:05d}.jpg", quality=90)
    return folder


class Developed:
    """Stands for `vae.decode`: the same work, another picture."""

    def __init__(self, decode: Any, size: int) -> None:
        import torch

        self._decode, self._next = decode, 0
        self._pictures = torch.from_numpy(crops((size, size))).permute(0, 3, 1, 2).float() / 127.5 - 1

    def __call__(self, latents: Any, return_dict: bool = True, **options: Any) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        decoded = self._decode(latents, return_dict=False, **options)[0]
        if self._pictures.device != decoded.device or self._pictures.dtype != decoded.dtype:
            self._pictures = self._pictures.to(decoded)
        rows = [(self._next + n) % len(self._pictures) for n in range(len(decoded))]
        self._next += len(decoded)
        sample = self._pictures[rows]
        return DecoderOutput(sample=sample) if return_dict else (sample,)


def develop(vae: Any, size: int) -> None:
    """Make a VAE answer with photographs of `size` pixels a side."""
    vae.decode = Developed(vae.decode, size)
