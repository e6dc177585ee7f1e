"""The other ways to fill a disk with a diffusers pipeline's images, written as their authors write them: a script, and
Ray Data.

`Script` is the loop of Real-Fake's generate.py (BAAI-DCAI/Training-Data-Synthesis): one process a device, a list of
output paths a batch, resume by `os.path.exists` of the last one, init images by
`Image.open(path).convert("RGB").resize(size)`, `pipeline(...).images` as PIL, `image.save(path)` for each with PIL's
defaults. Left out: its CPU offload (there is no GPU), captions and visual tokens from files, its UniPC sampler (every
side has the same one). StableRep's and EDM's scripts are the same loop with `.png`.

`ray_data` is a pipeline in an actor of `map_batches`, whose images go to `write_webdataset`, which encodes them with
PIL.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """What every peer is told: the model, how to draw, and how the images are stored. `size` is a side in pixels."""

    checkpoint: str
    scheduler: str
    steps: int
    guidance_scale: float
    strength: float
    size: int
    batch: int
    format: str
    photographs: bool

    @property
    def from_images(self) -> bool:
        """Whether drawing starts from real images."""
        return self.strength < 1


@dataclass(frozen=True)
class Item:
    """One image to draw: its prompt, seed, class, and the real image that it starts from."""

    prompt: str
    seed: int
    label: int
    init: str = ""


def open_pipeline(work: Work) -> Any:
    """The checkpoint as a user of diffusers opens it, with the sampler that all sides use, on one thread."""
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    from benchmarks.photographs import develop
    from engine.diffusion import schedulers

    torch.set_num_threads(1)
    kind = StableDiffusionImg2ImgPipeline if work.from_images else StableDiffusionPipeline
    extra = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    pipeline = kind.from_pretrained(work.checkpoint, **extra)
    pipeline.scheduler = schedulers.make(work.scheduler, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    if work.photographs:
        develop(pipeline.vae, work.size)
    return pipeline


def opened(work: Work, item: Item) -> Any:
    """The real image that an item starts from, as the script opens it."""
    from PIL import Image

    return Image.open(item.init).convert("RGB").resize((work.size, work.size))


def draw(pipeline: Any, work: Work, items: list[Item]) -> list[Any]:
    """PIL images of one batch; init images are read here, as the script does."""
    import torch

    told: dict[str, Any] = {}
    if work.from_images:
        told["image"] = [opened(work, item) for item in items]
        told["strength"] = work.strength
    return pipeline(
        prompt=[item.prompt for item in items],
        generator=[torch.Generator().manual_seed(item.seed) for item in items],
        num_inference_steps=work.steps,
        guidance_scale=work.guidance_scale,
        **told,
    ).images


def batches(items: list[Item], size: int) -> list[list[Item]]:
    """The items, `size` at a time."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def model_alone(pipeline: Any, work: Work, items: list[Item]) -> float:
    """Every item through denoiser and VAE alone, from encoded prompts and decoded images to floats on the device;
    seconds."""
    import torch

    encoded = {item.prompt: pipeline.encode_prompt(item.prompt, "cpu", 1, work.guidance_scale > 1) for item in items}
    preprocess = pipeline.image_processor.preprocess
    images = {item.init: preprocess(opened(work, item)) for item in items if item.init}
    seconds = 0.0
    for batch in batches(items, work.batch):
        embeds, negative = zip(*(encoded[item.prompt] for item in batch), strict=True)
        told: dict[str, Any] = {"prompt_embeds": torch.cat(embeds)}
        if work.guidance_scale > 1:
            told["negative_prompt_embeds"] = torch.cat(negative)
        if work.from_images:
            told |= {"image": torch.cat([images[item.init] for item in batch]), "strength": work.strength}
        told["generator"] = [torch.Generator().manual_seed(item.seed) for item in batch]
        began = time.time()
        pipeline(**told, num_inference_steps=work.steps, guidance_scale=work.guidance_scale, output_type="pt")
        seconds += time.time() - began
    return seconds


def save_all(pipeline: Any, work: Work, folder: str, items: list[Item], format: str) -> float:
    """The script's loop: draw and save every item, a file each; seconds from the first batch to the last file."""
    began, number = time.time(), 0
    for batch in batches(items, work.batch):
        paths = [os.path.join(folder, f"{number + n:06d}.{format}") for n in range(len(batch))]  # noqa: PTH118
        number += len(batch)
        if os.path.exists(paths[-1]):  # noqa: PTH110
            continue
        for image, path in zip(draw(pipeline, work, batch), paths, strict=True):
            image.save(path)
    return time.time() - began


class Script:
    """A process that has loaded its pipeline and drawn one batch; `run` is the script's loop."""

    def __init__(self, work: Work, warm: list[Item]) -> None:
        self._work, self._pipeline = work, open_pipeline(work)
        draw(self._pipeline, work, warm[: work.batch])

    def ready(self) -> None:
        """Answers once the model is loaded."""

    def run(self, folder: str, items: list[Item], format: str) -> float:
        """See `save_all`."""
        return save_all(self._pipeline, self._work, folder, items, format)

    def bare(self, items: list[Item]) -> float:
        """See `model_alone`."""
        return model_alone(self._pipeline, self._work, items)


class Pipe:
    """The actor of `map_batches`; it says in `folder`/began when its first batch begins, after loading and a
    warm-up."""

    def __init__(self, work: Work, warm: list[Item], folder: str) -> None:
        self._work, self._pipeline, self._began = work, open_pipeline(work), Path(folder, "began")
        draw(self._pipeline, work, warm[: work.batch])

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        if not self._began.exists():
            self._began.write_text(repr(time.time()))
        columns = zip(*(batch[name].tolist() for name in ("prompt", "seed", "label", "init")), strict=True)
        images = draw(self._pipeline, self._work, [Item(*column) for column in columns])
        pixels = np.stack([np.asarray(image) for image in images])
        return {"__key__": batch["key"], self._work.format: pixels, "cls": batch["label"]}


def ray_data(work: Work, items: list[Item], folder: Path, shards: int, warm: list[Item]) -> float:
    """Draw and write every item as WebDataset tars with Ray Data; seconds from the first batch to the last byte of a
    tar."""
    import ray

    rows = [
        {"key": f"{n:06d}", "prompt": item.prompt, "seed": item.seed, "label": item.label, "init": item.init}
        for n, item in enumerate(items)
    ]
    tars = folder / "tars"
    ray.data.from_items(rows, override_num_blocks=shards).map_batches(
        Pipe,
        fn_constructor_kwargs={"work": work, "warm": warm, "folder": str(folder)},
        compute=ray.data.ActorPoolStrategy(size=1),
        batch_size=work.batch,
        num_cpus=0.5,
    ).write_webdataset(str(tars))
    began = float((folder / "began").read_text())
    return max(path.stat().st_mtime for path in tars.glob("*.tar")) - began
