"""What the closed-set generator's default settings cost at each image size (python -m benchmarks.pretrain_sizes).

CPU seconds of one thread for a training step's image and for a sample, the fastest of a few, with the settings that
engine/spec/presets.py fills in; times the steps and batch of these settings. Writes
benchmarks/results/pretrain_sizes.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from engine.diffusion.tiny import pixelmodels, tiny_models
from engine.spec import validate

SIZES = (8, 16, 32, 64, 128)
REPEATS, BATCH, STEPS = 3, 16, 18
OUT = Path(__file__).parent / "results" / "pretrain_sizes.json"


def fastest(call: Callable[[], Any]) -> float:
    """CPU seconds of this thread, the smallest of a few."""
    found = []
    for _ in range(REPEATS):
        began = time.thread_time()
        call()
        found.append(time.thread_time() - began)
    return min(found)


def row(size: int) -> dict[str, Any]:
    """The settings of a size and what they cost."""
    spec = validate({"name": "sizes", "source": {"kind": "digits"}, "images": {"size": size}})
    pretrain = spec.pretrain
    own: Any = pretrain.trained
    if pretrain.space == "pixel":
        unet: Any = pixelmodels.build_unet(pretrain.pixel, size, 10)
        inputs = (torch.randn(BATCH, 3, size, size), torch.zeros(BATCH))
        told = {"class_labels": torch.zeros(BATCH, dtype=torch.int64)}
    else:
        unet = tiny_models.build_unet(pretrain.unet, pretrain.vae, size, pretrain.clip.hidden)
        side = tiny_models.latent_size(pretrain.vae, size)
        inputs = (torch.randn(BATCH, pretrain.vae.latent_channels, side, side), torch.zeros(BATCH))
        told = {"encoder_hidden_states": torch.zeros(BATCH, pretrain.text_length, pretrain.clip.hidden)}

    def step() -> None:
        unet(*inputs, **told).sample.square().mean().backward()

    def draw() -> None:
        with torch.inference_mode():
            unet(*inputs, **told)

    trained, drawn = fastest(step) / BATCH, fastest(draw) / BATCH
    found = {
        "space": pretrain.space,
        "blocks": list(own.blocks),
        "parameters": tiny_models.parameters(unet),
        "steps": own.steps,
        "batch": own.batch,
        "images": own.steps * own.batch,
        "cpu_seconds_an_image": trained,
        "cpu_minutes": trained * own.steps * own.batch / 60,
        "cpu_seconds_a_sample": drawn * STEPS * 2,
    }
    if pretrain.space == "latent":
        vae: Any = tiny_models.build_vae(pretrain.vae, size)
        pixels = torch.randn(4, 3, size, size)
        once = fastest(lambda: vae(pixels).sample.square().mean().backward()) / 4
        found["vae_cpu_minutes"] = once * pretrain.vae.steps * pretrain.vae.batch / 60
    return found


def main() -> None:
    """As the module says; `samples` are of 18 steps, guided."""
    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        rows.append({"case": f"{size} px", **row(size)})
        print(rows[-1], flush=True)
    OUT.write_text(json.dumps({"results": rows, "machine": machine("pretrain_sizes")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
