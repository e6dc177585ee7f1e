"""Generators in pixels under flow matching: samples written out by hand, images to start from, any batch, directories,
refusals."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel

from engine.diffusion import families, schedulers
from engine.diffusion.checkpoint import Checkpoint, check_generate, load
from engine.diffusion.process import Flow
from engine.diffusion.sampler import Request, Sampler
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec
from tests.support.families import SIZE

PLAIN = {"num_inference_steps": 4, "scheduler": "flow_euler", "visual_token": "none", "guidance_scale": 1.0}


def ask(count: int) -> list[Request]:
    rng = np.random.default_rng(7)
    return [
        Request("not read", 1000 + n, None, rng.uniform(-1, 1, (3, SIZE, SIZE)).astype(np.float32), n % 10)
        for n in range(count)
    ]


def draw(checkpoint: Checkpoint, requests: list[Request], **changes: Any) -> np.ndarray:
    drawn = Sampler(load(checkpoint, "cpu", "float32"), GenerateSpec(**PLAIN | changes)).draw(requests)
    assert [result.reason for result in drawn] == [None] * len(drawn)
    return np.stack([result.pixels for result in drawn]).astype(int)


@torch.no_grad()
def by_hand(folder: Path, request: Request, times: list[float], scale: float = 1.0, begin: float = 1.0) -> np.ndarray:
    """Euler's method along the velocity, at `times` from 1 (noise) to 0, those before `begin` left out."""
    unets: list[Any] = [UNet2DModel.from_pretrained(folder, subfolder=name).eval() for name in ("guide", "unet")]
    times = [s for s in times if s <= begin]
    noise = torch.randn((1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(request.seed))
    assert request.init_latents is not None
    x = (1 - times[0]) * torch.from_numpy(request.init_latents)[None] + times[0] * noise if begin < 1 else noise
    label = torch.tensor([request.label])
    for s, then in itertools.pairwise(times):
        weak, good = (unet(x, torch.tensor([1000 * s]), class_labels=label).sample for unet in unets)
        x = x + (then - s) * (weak + scale * (good - weak))
    images = ((x / 2 + 0.5).clamp(0, 1) * 255).round()
    return images.permute(0, 2, 3, 1).numpy().astype(int)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_samples_are_eulers_method_with_autoguidance(checked: dict[str, Checkpoint], scale: float) -> None:
    for request in ask(3):
        found = draw(checked["pixel_flow"], [request], guidance="auto", guidance_scale=scale)
        expected = by_hand(Path(checked["pixel_flow"].path), request, [*np.linspace(1, 0.001, 4), 0.0], scale)
        assert np.abs(found - expected).max() <= 1


def test_strength_begins_between_an_image_and_noise(checked: dict[str, Checkpoint]) -> None:
    [request] = ask(1)
    times = [*np.linspace(1, 0.001, 10), 0.0]
    found = draw(checked["pixel_flow"], [request], strength=0.5, num_inference_steps=10, pairing="own")
    assert np.abs(found - by_hand(Path(checked["pixel_flow"].path), request, times, begin=times[5])).max() <= 1


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", schedulers.FLOW)
def test_a_sample_is_the_same_in_any_batch(checked: dict[str, Checkpoint], name: str, strength: float) -> None:
    more = {"scheduler": name, "strength": strength, "pairing": "own", "guidance_scale": 2.0}
    whole = draw(checked["pixel_flow"], ask(4), **more)
    alone = np.concatenate([draw(checked["pixel_flow"], [request], **more) for request in ask(4)])
    assert np.abs(whole - alone).max() <= 2
    assert np.abs(whole[0] - whole[1]).max() > 8


def test_the_directory_opens_in_stock_diffusers_and_says_how_it_was_trained(
    checked: dict[str, Checkpoint], family_folders: dict[str, Path]
) -> None:
    stock: Any = DiffusionPipeline.from_pretrained(family_folders["pixel_flow"])
    assert type(stock) is DDPMPipeline
    assert type(stock.scheduler) is FlowMatchEulerDiscreteScheduler
    pipeline = load(checked["pixel_flow"], "cpu", "float32")
    family = families.of(pipeline)
    assert isinstance(family.process(pipeline.scheduler.config), Flow)
    images, times = torch.randn(2, 3, SIZE, SIZE), torch.tensor([100.0, 800.0])
    labels = torch.tensor([1, 2])
    with torch.no_grad():
        expected = stock.unet(images, times, class_labels=labels).sample
        states = torch.zeros(2, 1, pipeline.image_projection.config.redux_dim)
        told = {"labels": labels, "states": states}
        torch.testing.assert_close(family.predict(pipeline.unet, images, times, told), expected)


def test_samplers_of_other_trainings_are_refused(checked: dict[str, Checkpoint]) -> None:
    for name in ("ddim", "heun", "dpmsolver++"):
        with pytest.raises(ConfigError, match=r"trained by flow matching; set generate\.scheduler to flow_euler"):
            check_generate(checked["pixel_flow"], GenerateSpec(**PLAIN | {"scheduler": name}))
    assert check_generate(checked["pixel_flow"], GenerateSpec(**PLAIN)) == []
